"""Command lines, run as a user runs them or many in one process."""

import json
import subprocess
import sys

from adjointdpm.tasks import load_result

SMALL = [
    "--num_inference_steps",
    "2",
    "--max_train_steps",
    "2",
    "--num_validation_images",
    "1",
    "--judge",
    "none",
]
TWO = ["--prompt", "a <effect> cat", "--validation_prompt", "a <effect> car"]


ONE_IMAGE = ["sample", "--prompt", "a cat", "--batch", "1"]


def adjointdpm(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "adjointdpm", *arguments], capture_output=True, text=True, timeout=300
    )


# In one process of its own, since imports take seconds.
SCRIPT = """
import json, sys
from adjointdpm.cli.main import app
for arguments in json.loads(sys.argv[1]):
    try:
        app.main(arguments, standalone_mode=False)
        print("#done")
    except Exception as error:
        print("#" + type(error).__name__ + ": " + " ".join(str(error).split()))
"""


def run(*commands):
    """What became of each command: "done", or the error that ended it."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(commands)], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return [line[1:] for line in done.stdout.splitlines() if line.startswith("#")]


def without_seconds(folder):
    found = load_result(folder)
    found["result"]["costs"].pop("seconds")
    found["settings"].pop("output_dir", None)
    return found


def refused(tmp_path, wrong):
    """Check that each command ends in an InputError with the message that is its key."""
    ended = run(*([*arguments, "--output_dir", str(tmp_path)] for arguments in wrong.values()))
    for message, end in zip(wrong, ended, strict=True):
        assert end.startswith("InputError: "), end
        assert message in end, end
