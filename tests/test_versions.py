"""What pyproject.toml declares: the constraints files say the same, and the command line works with them.

`make test-lowest` and `make test-newest` run this file and the core of the suite against both ends.
"""

import re
from pathlib import Path

import pytest

from adjointdpm.cli import app

ROOT = Path(__file__).parents[1]
TOOLS = {"pyright", "ruff", "tensorboard", "torchdiffeq", "torchsde"}  # not in the core of the suite


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


@pytest.mark.parametrize(
    "command", [None, *(each.name or each.callback.__name__ for each in app.registered_commands)]
)
def test_every_commands_help_is_printed(command, capsys):
    app([command, "--help"] if command else ["--help"], standalone_mode=False)
    text = capsys.readouterr().out
    assert "--help" in text
    if command:
        assert f"{command} [OPTIONS]" in re.sub(r"\s+", " ", text)


@pytest.mark.parametrize(
    ("arguments", "flag"),
    [(["sample", "a cat", "--seed", "x"], "--seed"), (["tune", "--no_such"], "--no_such")],
)
def test_a_flag_that_is_wrong_is_an_error_that_names_it(arguments, flag):
    """In the form that the command line prints, whichever typer and click raised it."""
    with pytest.raises(Exception) as error:  # noqa: PT011
        app(arguments, standalone_mode=False)
    assert flag in error.value.format_message()
    assert error.value.exit_code == 2
