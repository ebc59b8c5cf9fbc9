"""What a type checker sees of the public names."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import adjointdpm
from tests import ROOT

# Packages whose every public name has a type that all checkers infer in the same way.
COMPLETE = ("_types", "analysis", "metrics")


@pytest.fixture(scope="module")
def symbols():
    pytest.importorskip("pyright")
    folder = Path(sys.executable).parent
    done = subprocess.run(
        [folder / "pyright", "--verifytypes", "adjointdpm", "--ignoreexternal", "--outputjson"],
        env={
            **os.environ,
            "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
        },  # the environment that it looks into
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return json.loads(done.stdout)["typeCompleteness"]["symbols"]


def test_no_public_name_of_a_complete_package_has_an_ambiguous_type(symbols):
    exported = [each for each in symbols if each["isExported"]]
    ours = [each for each in exported if each["name"].split(".")[1] in COMPLETE]
    assert len(ours) > 200
    assert not [each["name"] for each in ours if not each["isTypeKnown"]]


def test_every_public_name_is_known_to_type_checkers(symbols):
    """They see the imports under TYPE_CHECKING, which must be those that run."""
    seen = {each["name"].removeprefix("adjointdpm.") for each in symbols}
    modules = {"grids", "metrics", "optimization", "tasks", "zoo"}
    assert not {name for name in adjointdpm.__all__ if name not in seen | modules}


def test_the_package_says_that_it_is_typed():
    assert (Path(adjointdpm.__file__).parent / "py.typed").is_file()
