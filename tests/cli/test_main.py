"""Exit codes and errors of the command line, run as a user runs it."""

import pytest

from tests.tiny.commands import adjointdpm


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sample", "a xylophone"], "xylophone"),
        (["sample", "a cat", "--num_inference_steps", "0"], "at least 1"),
        (["sample", "a cat", "--output_dir", "/dev/null/here"], "cannot write"),
        (["demo", "--output_dir", "/dev/null/here"], "cannot write"),
        (["compare", "a xylophone"], "xylophone"),
        (["compare", "a cat", "--num_inference_steps", "0"], "num_inference_steps"),
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
