"""The documentation site shows every public name once and has every page in its navigation."""

import re
import types
from importlib import import_module

import yaml

import adjointdpm as adp
from tests import ROOT

DOCS = ROOT / "docs"


def public(module, prefix=""):
    """Every name of a module and of the modules that it names, with its object."""
    for name in getattr(module, "__all__", ()):
        found = getattr(module, name)
        if isinstance(found, types.ModuleType):
            yield from public(found, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", found


def test_every_public_name_is_in_the_reference_once():
    text = "\n".join(path.read_text() for path in sorted((DOCS / "api").glob("*.md")))
    shown = re.findall(r"^::: (adjointdpm\.\S+)$", text, re.MULTILINE)
    assert len(shown) == len(set(shown))
    places = [name.rpartition(".") for name in shown]
    objects = {id(getattr(import_module(home), name)) for home, _, name in places}
    assert len(objects) == len(shown)
    assert [name for name, found in public(adp) if id(found) not in objects] == []


def test_every_page_is_in_the_navigation():
    def pages(entry):
        return (
            [entry]
            if isinstance(entry, str)
            else [p for each in entry for v in each.values() for p in pages(v)]
        )

    nav = pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    there = [path.relative_to(DOCS) for path in DOCS.rglob("*.md")]
    there += [path.relative_to(ROOT) for path in (ROOT / "notebooks").glob("*.ipynb")]
    assert sorted(nav) == sorted(map(str, there))
