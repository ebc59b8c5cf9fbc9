"""Commands on the bundled model under signals, beside another run and on a full disk, each in a fork of one process.

`python -m tests.tiny.forked_commands FOLDER` checks them all. It is a process of its own, since imports take
seconds.
"""

import ctypes
import os
import resource
import signal
import sys
import time
from pathlib import Path

import torch

from adjointdpm.cli.main import main


def command(arguments, errors, prepare=lambda: None):
    """The command line in a process of its own, with its error stream in a file; its number."""
    pid = os.fork()
    if pid == 0:
        code = 99
        ctypes.CDLL(None).prctl(
            1, signal.SIGKILL
        )  # PR_SET_PDEATHSIG: it does not outlive a test that failed
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(os.open(errors, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), 2)
            sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
            sys.argv = ["adjointdpm", *arguments]
            prepare()
            main()
        except SystemExit as end:
            code = end.code
        finally:
            sys.stderr.flush()
            os._exit(code)
    return pid


def exit_code(pid):
    """That a process ended with."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def signals_and_a_second_run(tmp_path):
    """On the bundled model: another run is refused, ten Ctrl-Cs make one line, and SIGTERM goes on and off again."""
    given = [
        "guide",
        "--metric",
        "background:0.9,0.8,0.2",
        "--prompt",
        "a cat",
        "--judge",
        "none",
        "--seed",
        "3",
    ]
    given += ["--num_inference_steps", "1", "--num_validation_images", "1", "--checkpointing_steps", "1"]
    given += ["--max_train_steps", "100000", "--output_dir", str(tmp_path / "run")]
    state = tmp_path / "run" / "state" / "checkpoint.safetensors"

    def lines(name):
        text = (tmp_path / name).read_text()
        return [
            line for line in text.splitlines() if "it/s" not in line and "s/it" not in line and line.strip()
        ]

    def begun(pid, after):
        while not state.exists() or state.stat().st_mtime_ns == after:
            time.sleep(0.02)
            assert os.waitpid(pid, os.WNOHANG) == (0, 0)

    first = command(given, tmp_path / "first")
    begun(first, None)
    config = (tmp_path / "run" / "config.yaml").read_bytes()
    assert exit_code(command([*given, "--resume", "--seed", "4"], tmp_path / "second")) == 2
    (line,) = lines("second")
    assert line.startswith(f"adjointdpm: another run (process {first} on ")
    assert (tmp_path / "run" / "config.yaml").read_bytes() == config
    for _ in range(10):
        os.kill(first, signal.SIGINT)
        time.sleep(0.005)
    assert exit_code(first) == 130
    (line,) = lines("first")[-1:]
    assert line.startswith("adjointdpm: interrupted at step ")
    assert sum(each.startswith("adjointdpm:") for each in lines("first")) == 1
    assert "Traceback" not in (tmp_path / "first").read_text()
    before = state.stat().st_mtime_ns
    third = command([*given, "--resume"], tmp_path / "third")
    begun(third, before)
    os.kill(third, signal.SIGTERM)
    assert exit_code(third) == 143
    (line,) = lines("third")[-1:]
    assert line.startswith("adjointdpm: interrupted at step ")
    assert exit_code(command([*given, "--resume", "--seed", "4"], tmp_path / "fourth")) == 2
    assert lines("fourth") == [
        f"adjointdpm: {tmp_path / 'run' / 'config.yaml'} was made with seed = 3, but this run has 4; resume with the "
        "same settings, or use another output folder"
    ]
    assert (tmp_path / "run" / "config.yaml").read_bytes() == config


def a_full_disk(tmp_path):
    """On the bundled model, whose images take more than 5000 bytes."""

    def prepare():
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))

    given = [
        "sample",
        "--prompt",
        "a cat",
        "--num_inference_steps",
        "1",
        "--batch",
        "1",
        "--quiet",
        "--output_dir",
        str(tmp_path / "out"),
    ]
    assert exit_code(command(given, tmp_path / "errors", prepare)) == 2
    (line,) = (tmp_path / "errors").read_text().splitlines()
    assert line.startswith(f"adjointdpm: cannot write {tmp_path / 'out' / '00-00.png'}: File too large.")
    assert [each.name for each in (tmp_path / "out").iterdir()] == [
        ".lock"
    ]  # which a program deletes at its end


if __name__ == "__main__":
    torch.set_num_threads(1)
    signals_and_a_second_run(Path(sys.argv[1]))
    a_full_disk(Path(sys.argv[1]))
