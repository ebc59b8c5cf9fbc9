"""Every example in a docstring runs as it is written."""

import doctest
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from tests import PACKAGE

MODULES = [
    ".".join(("adjointdpm", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
    for path in sorted(PACKAGE.rglob("*.py"))
    if ">>>" in path.read_text()
]

GOOGLE = 'lint.pydocstyle.convention = "google"'


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    failed, tried = doctest.testmod(
        importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    )
    assert tried
    assert not failed


# Packages whose docstrings name all that is returned, yielded and raised.
COMPLETE = ("_types.py", "__init__.py", "analysis", "files", "metrics", "zoo")


def test_docstrings_name_what_is_returned_and_raised():
    ruff = Path(sys.executable).with_name("ruff")
    if not ruff.exists():
        pytest.skip("ruff is not installed")
    rules = ["--isolated", "--preview", "--select", "DOC201,DOC402,DOC501", "--config", GOOGLE]
    paths = [PACKAGE / name for name in COMPLETE]
    excluded = ["--exclude", "html_report.py"]
    done = subprocess.run(
        [ruff, "check", "--no-cache", *rules, *excluded, *paths],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
