"""A run has its output folder to itself, and overwrites no earlier run's results."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

import adjointdpm as adp
from adjointdpm.files.checkpoint import save_checkpoint
from adjointdpm.optimization import run_folder
from adjointdpm.optimization.run_folder import finished_part, hold_folder
from adjointdpm.tasks import GuideSettings, RunOptions
from tests import ROOT
from tests.tiny.tasks import digest, mixture_sampler, run


def holding(folder):
    """A process that holds a folder until it is killed."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        with run_folder.run_folder(folder):
            os.write(write, b"held")
            time.sleep(60)
        os._exit(1)
    assert os.read(read, 4) == b"held"
    return pid


def test_a_second_run_is_refused_while_the_first_lives(tmp_path):
    pid = holding(tmp_path)
    try:
        for _ in range(2):
            with pytest.raises(adp.InputError, match=rf"another run \(process {pid} on .*is writing to"):
                run(tmp_path)
        assert [each.name for each in tmp_path.iterdir()] == [".lock"]
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert (tmp_path / ".lock").exists()  # a killed process leaves the file, and no lock
    run(tmp_path)
    assert not (tmp_path / ".lock").exists()


def test_another_thread_is_another_run(tmp_path):
    found = []

    def other():
        with pytest.raises(adp.InputError, match="another run") as caught:
            run(tmp_path)
        found.append(caught)

    with run_folder.run_folder(tmp_path):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        with run_folder.run_folder(tmp_path):  # this one may enter it again
            pass
        assert (tmp_path / ".lock").exists()
    assert found
    assert not (tmp_path / ".lock").exists()


def test_results_are_not_overwritten_without_resume(tmp_path):
    first = digest(run(tmp_path, steps=3))
    before = {each.name: each.read_bytes() for each in tmp_path.iterdir()}
    with pytest.raises(adp.InputError, match=r"holds checkpoint.safetensors of an earlier run.*--resume"):
        run(tmp_path, steps=5, resume=False)
    assert {each.name: each.read_bytes() for each in tmp_path.iterdir()} == before
    assert digest(run(tmp_path, steps=3)) == first


def test_a_task_keeps_its_folder_to_itself(tmp_path):
    def guide(**more):
        settings = GuideSettings(max_train_steps=1, num_validation_images=1)
        return adp.tasks.guide(
            mixture_sampler(3),
            adp.metrics.Chroma(),
            ["x"],
            output=tmp_path,
            settings=settings,
            run=RunOptions(quiet=True, **more),
        )

    guide()
    before = (tmp_path / "result.json").read_bytes()
    with pytest.raises(adp.InputError, match=r"holds result.json of an earlier run"):
        guide()
    assert (tmp_path / "result.json").read_bytes() == before
    (tmp_path / "result.json").write_text("{}")
    guide(overwrite=True)  # as a cell of a notebook that is run again
    again = json.loads((tmp_path / "result.json").read_text())["result"]
    assert again["methods"] == json.loads(before)["result"]["methods"]
    pid = holding(tmp_path)
    try:
        with pytest.raises(adp.InputError, match="another run"):
            guide(resume=True)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    guide(resume=True)


def test_a_command_holds_its_folder_for_the_tasks_in_it(tmp_path, monkeypatch):
    with run_folder.ExitStack() as command:
        monkeypatch.setattr(run_folder, "_command", command)
        assert hold_folder(tmp_path) == tmp_path
        run(tmp_path / "state", steps=2)
        run(tmp_path / "state", steps=2, resume=False)  # the command has seen to it that it may
        pid = os.fork()
        if pid == 0:
            try:
                run_folder._held.folders.clear()  # as a process that was not forked
                with run_folder.run_folder(tmp_path):
                    os._exit(1)
            except adp.InputError:
                os._exit(0)
            finally:
                os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    with run_folder.run_folder(tmp_path):
        pass


def test_where_nothing_can_be_locked_a_warning_says_so(tmp_path, monkeypatch):
    def flock(file, how):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(run_folder.fcntl, "flock", flock)
    with pytest.warns(UserWarning, match=r"cannot be locked.*Operation not supported.*no other run"):
        found = run(tmp_path)
    assert digest(found) == digest(run(None))
    monkeypatch.setattr(run_folder, "fcntl", None)
    with pytest.warns(UserWarning, match="no locks"):
        run(tmp_path / "other")


def test_a_resumption_of_nothing_says_that_it_starts_anew(tmp_path, capsys):
    run(tmp_path, quiet=False, steps=1)
    assert f"nothing to resume from in {tmp_path}: the run starts anew" in capsys.readouterr().err
    run(tmp_path, quiet=False, steps=1)
    assert "nothing to resume" not in capsys.readouterr().err


def test_commands_end_in_order_and_let_no_second_run_in(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tests.tiny.forked_commands", str(tmp_path)],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_a_finished_part_is_read_where_a_run_goes_on_with_its_config(tmp_path):
    path, tensors = tmp_path / "part.safetensors", {"x": torch.rand(3, dtype=torch.float64)}
    assert finished_part(path, {"a": 1}, True) is None
    save_checkpoint(path, tensors, {"config": {"a": 1, "n": 5}})
    assert finished_part(path, {"a": 2}, False) is None
    found, about = finished_part(path, {"a": 1, "n": 6}, True, free=("n",))
    assert torch.equal(found["x"], tensors["x"])
    assert about["config"]["n"] == 5
    with pytest.raises(adp.InputError, match="a = 1, but this run has 2; resume with the same settings"):
        finished_part(path, {"a": 2, "n": 5}, True)
