"""What pyproject.toml declares: the constraints files say the same, and the command line works with them.

`make test-lowest` and `make test-newest` run this file and the core of the suite against both ends.
"""

import json
import re
import subprocess
import sys

import pytest

from adjointdpm.cli.main import COMMANDS
from tests import ROOT

TOOLS = {
    "adversarial-robustness-toolbox",
    "captum",
    "foolbox",
    "gradio",
    "hatchling",
    "ipykernel",
    "nbclient",
    "nbformat",
    "playwright",
    "pyright",
    "ruff",
    "tensorboard",
    "torchdiffeq",
    "torchsde",
}  # not in the core of the suite


def parts(version):
    """A version's numbers, without the zeros at its end."""
    return tuple(int(each) for each in re.sub(r"(\.0)+$", "", version).split("."))


def declared():
    found = re.findall(r'"([\w-]+)>=([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    return {name: parts(version) for name, version in found}


def pinned(file):
    found = re.findall(r"^([\w-]+)==([\d.]+)$", (ROOT / file).read_text(), re.MULTILINE)
    return {name: parts(version) for name, version in found}


def test_the_lowest_constraints_are_the_bounds_that_are_declared():
    """But for torch, whose release the Makefile chooses."""
    lowest = pinned("constraints-lowest.txt")
    for name, version in declared().items():
        if name not in TOOLS | {"torch"}:
            assert lowest[name] == version, name


def test_the_newest_constraints_cover_what_is_declared():
    newest = pinned("constraints-newest.txt")
    for name, version in declared().items():
        if name not in TOOLS:
            assert newest[name] >= version, name


def test_the_makefile_names_files_that_exist():
    core = re.search(r"CORE := \$\(addprefix tests/,(.*?)\)", (ROOT / "Makefile").read_text(), re.DOTALL)
    assert core
    files = re.findall(r"\S+\.py", core[1])
    assert len(files) > 5
    assert not [file for file in files if not (ROOT / "tests" / file).is_file()]


HELP = [["--help"], *([command, "--help"] for command in COMMANDS)]
WRONG = {"--seed": ["sample", "a cat", "--seed", "x"], "--no_such": ["tune", "--no_such"]}

# In a process of its own, since it replaces the arguments and the streams.
SCRIPT = """
import contextlib, io, json, sys
from adjointdpm.cli.main import main
from tests import ROOT
from tests import ROOT
found = []
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["adjointdpm", *arguments]
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        try:
            main()
        except SystemExit as end:
            found.append((end.code, out.getvalue(), errors.getvalue()))
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def answers():
    """Exit code, output and errors of each command line, by the line."""
    lines = [*HELP, *WRONG.values()]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(lines)], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout.splitlines()[-1])
    return dict(zip(map(tuple, lines), found, strict=True))


@pytest.mark.parametrize("arguments", HELP, ids=" ".join)
def test_every_commands_help_is_printed(arguments, answers):
    code, text, _ = answers[tuple(arguments)]
    assert code in (0, None)
    assert "--help" in text
    if len(arguments) > 1:
        assert f"{arguments[0]} [OPTIONS]" in re.sub(r"\s+", " ", text)


@pytest.mark.parametrize("flag", WRONG)
def test_a_flag_that_is_wrong_is_an_error_that_names_it(flag, answers):
    """In one line and with exit code 2, whichever click raised it."""
    code, _, errors = answers[tuple(WRONG[flag])]
    assert code == 2
    assert flag in errors
