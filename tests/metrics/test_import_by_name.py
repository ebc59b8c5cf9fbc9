"""Functions by name: a module in the current folder is found; one that fails, exits or waits is one line."""

import math
import os
import subprocess
import sys

import pytest
import torch

import adjointdpm as adp
from adjointdpm import metrics as m
from adjointdpm.metrics import user_function
from adjointdpm.metrics.check import check_metric
from adjointdpm.metrics.standard_input import closed_stdin
from tests.tiny.tasks import mixture_sampler

MODULES = {
    "mine_works": "import mine_helps\ndef f(x): return mine_helps.f(x)",
    "mine_helps": "def f(x): return x.mean((1, 2, 3))",
    "mine_raises": "1 / 0",
    "mine_exits": "raise SystemExit(0)",
    "mine_asks": "input()",
    "mine_lacks": "import no_such_package",
    "mine_is_cut": "def f(:",
    "mine_calls": """
import os
def raises(x): return x[9]
def exits(x): raise SystemExit(3)
def asks(x): return x.mean((1, 2, 3)) * len(input())
def reads(x): return x.mean((1, 2, 3)) + len(os.read(0, 1))
""",
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A current folder that is not on Python's path, as under an installed command."""
    for name, text in MODULES.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each not in ("", os.getcwd())])
    yield tmp_path
    for name in MODULES:
        sys.modules.pop(name, None)


def test_a_module_in_the_current_folder_and_what_it_imports(here):
    x = torch.rand(2, 3, 4, 4)
    assert torch.equal(user_function("mine_works:f")(x), x.mean((1, 2, 3)))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mine_raises", r"fails while it is imported \(ZeroDivisionError"),
        ("mine_exits", r"exits while it is imported \(SystemExit: 0\)"),
        ("mine_asks", r"fails while it is imported \(EOFError"),
        ("mine_is_cut", r"fails while it is imported \(SyntaxError"),
        ("mine_lacks", "cannot import mine_lacks: No module named 'no_such_package'"),
        ("..mine", r"fails while it is imported \(TypeError"),
    ],
)
def test_a_module_that_does_not_import(here, name, message):
    with pytest.raises(adp.InputError, match=message) as caught:
        user_function(f"{name}:f")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("raises", r"fails on gray images of shape \(1, 3, 1, 1\) \(IndexError"),
        ("exits", r"exits on gray images .* \(SystemExit: 3\)"),
        ("asks", r"fails on gray images .* \(EOFError"),
    ],
)
def test_a_metric_that_does_not_return(here, name, message):
    with pytest.raises(adp.InputError, match=message):
        check_metric(user_function(f"mine_calls:{name}"), mixture_sampler().image_shape, 1, torch.zeros(1))


def test_what_reads_below_python_finds_the_end_of_the_input(here):
    check_metric(user_function("mine_calls:reads"), mixture_sampler().image_shape, 1, torch.zeros(1))


def test_the_input_is_given_back():
    code = (
        "import sys, os; from adjointdpm.metrics.standard_input import closed_stdin\n"
        "with closed_stdin(): assert sys.stdin.read() == '' and os.read(0, 1) == b''\n"
        "print(input())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input="still here\n", capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("still here\n", "")
    kept = sys.stdin
    with pytest.raises(KeyError), closed_stdin():
        raise KeyError
    assert sys.stdin is kept


def test_unknown_names():
    with pytest.raises(adp.InputError, match="no effect 'glow'"):
        m.effect("glow")
    with pytest.raises(adp.InputError, match="no function 'nothing'"):
        m.user_function("math:nothing")
    with pytest.raises(adp.InputError, match="cannot import"):
        m.user_function("no_such_module_of_yours:f")
    assert m.user_function("math:sqrt") is math.sqrt
