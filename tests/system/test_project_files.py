"""The files around the code: metadata, citation, licences, workflows, and what a wheel contains."""

import re
import sys

import pytest
import yaml

import adjointdpm
from tests import PACKAGE, ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

METADATA = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = METADATA["project"]
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text())


def test_metadata_is_complete():
    for key in ("description", "readme", "license", "authors", "keywords", "classifiers", "urls"):
        assert PROJECT[key], key
    lowest = PROJECT["requires-python"].removeprefix(">=")
    assert f"Programming Language :: Python :: {lowest}" in PROJECT["classifiers"]
    assert "Typing :: Typed" in PROJECT["classifiers"]


def test_one_version_everywhere():
    assert PROJECT["version"] == adjointdpm.__version__ == CITATION["version"]
    assert re.search(
        rf"^## {re.escape(PROJECT['version'])}\b", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE
    )


def test_the_citation_is_the_paper():
    paper = CITATION["preferred-citation"]
    assert [author["family-names"] for author in paper["authors"]] == ["Pan", "Liew", "Tan", "Feng", "Yan"]
    assert paper["year"] == 2024
    assert "2307.10711" in paper["url"]
    assert CITATION["license"] == PROJECT["license"]


def test_licence_files_exist_and_the_font_has_its_own():
    files = [file for pattern in PROJECT["license-files"] for file in ROOT.glob(pattern)]
    assert {"LICENSE", "NOTICE", "OFL-1.1.txt"} == {file.name for file in files}
    text = (ROOT / "LICENSES" / "OFL-1.1.txt").read_text()
    assert text.startswith("Copyright Google")
    assert "SIL OPEN FONT LICENSE" in text
    assert "Noto Color Emoji" in (ROOT / "NOTICE").read_text()


@pytest.mark.parametrize(
    "path", sorted([*ROOT.glob(".github/**/*.yml"), ROOT / ".pre-commit-config.yaml"]), ids=lambda p: p.name
)
def test_configuration_is_valid_yaml(path):
    assert yaml.safe_load(path.read_text())


def test_workflows_call_targets_of_the_makefile():
    makefile = (ROOT / "Makefile").read_text()
    targets = {*re.findall(r"^([\w-]+):", makefile, re.MULTILINE)}
    text = "".join(path.read_text() for path in ROOT.glob(".github/workflows/*.yml"))
    called = {
        *re.findall(r"run: make ([\w-]+)", text),
        *re.findall(r"target: \[(.*?)\]", text)[0].split(", "),
    }
    assert {"test", "check", "test-lowest", "test-newest"} <= called
    assert called <= targets


def test_workflows_test_the_declared_releases_of_python():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text())
    tested = workflow["jobs"]["test"]["strategy"]["matrix"]["python"]
    declared = [
        each.rpartition(" ")[2] for each in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", each)
    ]
    assert tested == declared


def test_a_wheel_contains_every_bundled_file_and_licence():
    """As hatchling selects them; nothing is downloaded or compressed."""
    builder = pytest.importorskip("hatchling.builders.wheel").WheelBuilder(str(ROOT))
    included = {file.distribution_path for file in builder.recurse_included_files()}
    weights = [path.relative_to(PACKAGE.parent).as_posix() for path in PACKAGE.rglob("*.safetensors")]
    manifests = [path.relative_to(PACKAGE.parent).as_posix() for path in PACKAGE.rglob("MANIFEST.json")]
    assert len(weights) >= 10
    assert {*weights, *manifests, "adjointdpm/py.typed", "adjointdpm/zoo/emoji/emoji.json"} <= included
    assert not [path for path in included if not path.startswith("adjointdpm/")]
    assert set(builder.metadata.core.license_files) == {"LICENSE", "NOTICE", "LICENSES/OFL-1.1.txt"}
