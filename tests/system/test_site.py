"""The documentation site shows every public name once and has every page in its navigation."""

import re
import types
from importlib import import_module

import yaml

import adjointdpm as adp
from tests import ROOT

DOCS = ROOT / "docs"


def test_every_public_name_is_in_the_reference_once():
    text = "\n".join(path.read_text() for path in sorted((DOCS / "api").glob("*.md")))
    shown = re.findall(r"^::: (adjointdpm\.\S+)$", text, re.MULTILINE)
    assert len(shown) == len(set(shown))
    places = [name.rpartition(".") for name in shown]
    objects = {id(getattr(import_module(home), name)) for home, _, name in places}
    assert len(objects) == len(shown)
    names = {name: getattr(adp, name) for name in adp.__all__}
    for name, found in list(names.items()):
        if isinstance(found, types.ModuleType):
            del names[name]
            names |= {f"{name}.{each}": getattr(found, each) for each in getattr(found, "__all__", ())}
    assert [name for name, found in names.items() if id(found) not in objects] == []


def test_every_page_is_in_the_navigation():
    def pages(entry):
        return (
            [entry]
            if isinstance(entry, str)
            else [p for each in entry for v in each.values() for p in pages(v)]
        )

    nav = pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    assert sorted(nav) == sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))
