"""Exit codes and errors of the command line, run as a user runs it."""

import subprocess
import sys
from importlib.metadata import entry_points

import pytest

from tests.tiny.commands import adjointdpm


def test_the_module_is_the_command(monkeypatch):
    """`adjointdpm` and `python -m adjointdpm` have one entry, one name and one output."""
    (script,) = entry_points(group="console_scripts", name="adjointdpm")
    assert script.value == "adjointdpm.__main__:main"
    for arguments in (["--version"], ["sample", "--help"], ["nosuch"]):
        monkeypatch.setattr(sys, "argv", ["adjointdpm", *arguments])
        code = f"import sys; from adjointdpm.__main__ import main; sys.argv = {sys.argv!r}; main()"
        own = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        module = adjointdpm(*arguments)
        assert (module.returncode, module.stdout, module.stderr) == (own.returncode, own.stdout, own.stderr)
    assert "Usage: adjointdpm sample" in adjointdpm("sample", "--help").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sample", "--prompt", "a xylophone"], "xylophone"),
        (["sample", "--prompt", "a cat", "--num_inference_steps", "0"], "at least 1"),
        (["sample", "--prompt", "a cat", "--output_dir", "/dev/null/here"], "cannot write"),
        (["demo", "--output_dir", "/dev/null/here"], "cannot write"),
        (["compare", "--prompt", "a xylophone"], "xylophone"),
        (["compare", "--prompt", "a cat", "--num_inference_steps", "0"], "num_inference_steps"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(arguments, message, tmp_path):
    if "--output_dir" not in arguments:
        arguments = [*arguments, "--output_dir", str(tmp_path)]
    done = adjointdpm(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert "Traceback" not in done.stderr
