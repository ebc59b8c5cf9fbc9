"""Ctrl-C and SIGTERM end a run in order, once, wherever they come."""

import contextlib
import os
import signal
import sys
import threading
import time

import pytest
import torch

import adjointdpm as adp
from adjointdpm.optimization import signals
from adjointdpm.optimization.signals import Interrupted, held, stop_once
from adjointdpm.tasks import InterruptedRunError, StoppedRunError
from tests.tiny.tasks import Points, digest, run


class Slow(Points):
    """Says when it has begun its fourth step."""

    pause = 0.0

    def losses(self, step, items):
        if step == 3 and self.pause:
            print("begun", flush=True)
            time.sleep(self.pause)
        return super().losses(step, items)


Slow.__name__ = "Points"  # so that its checkpoints are those of a run that is not slow


def child(folder, come, prepare=lambda: None, ends=lambda: 0):
    """A run in a process of its own that is sent signals in its fourth step: its exit code and error stream."""
    read, write = os.pipe()
    errors = folder / "errors"
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            os.dup2(write, 1)
            os.dup2(os.open(errors, os.O_CREAT | os.O_WRONLY), 2)
            sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
            Slow.pause = 0.3
            prepare()
            try:
                run(folder / "run", Slow, checkpointing_steps=0)
                code = ends()
            except InterruptedRunError as error:
                print(f"line: {error}", file=sys.stderr, flush=True)
                code = error.code
            except KeyboardInterrupt:
                code = 98
        finally:
            os._exit(code)
    os.close(write)
    with open(read) as stream:
        assert stream.readline() == "begun\n"
        for number in come:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
            time.sleep(0.01)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return code, errors.read_text()


@pytest.mark.parametrize(
    ("come", "code"),
    [
        ([signal.SIGINT], 130),
        ([signal.SIGTERM], 143),
        ([signal.SIGINT] * 10, 130),
        ([signal.SIGTERM, *[signal.SIGINT] * 4], 143),
    ],
)
def test_the_first_signal_saves_and_the_others_change_nothing(tmp_path, come, code):
    slow = os.fsync

    def prepare():  # while it saves, the other signals come
        os.fsync = lambda file: (time.sleep(0.2), slow(file))

    ended, errors = child(tmp_path, come, prepare)
    assert (ended, errors.count("line:"), errors.count("Traceback")) == (code, 1, 0)
    assert "interrupted at step 3 of 12" in errors
    assert "--resume" in errors
    left = {each.name for each in (tmp_path / "run").iterdir()}
    assert "checkpoint.safetensors" in left
    assert not any(name.endswith(".part") for name in left)
    assert digest(run(tmp_path / "run")) == digest(run(None))


def test_signals_that_a_parent_ignores_stay_ignored(tmp_path):
    """As of a command that a shell script starts in the background."""

    def prepare():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    assert child(tmp_path, [signal.SIGINT, signal.SIGTERM] * 3, prepare)[0] == 0


def test_a_programs_own_handler_stays_in_force(tmp_path):
    came = []

    def prepare():
        signal.signal(signal.SIGTERM, lambda number, frame: came.append(number))

    # Signals of one number that come at once may be delivered as one.
    assert child(tmp_path, [signal.SIGTERM], prepare, lambda: 50 + len(came))[0] == 51


def test_handlers_are_put_back(tmp_path):
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    run(tmp_path)

    class Interrupted(Points):
        def losses(self, step, items):
            signal.raise_signal(signal.SIGTERM)
            return super().losses(step, items)

    with pytest.raises(InterruptedRunError) as caught:
        run(tmp_path / "other", Interrupted)
    assert caught.value.code == 143
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_run_in_another_thread_needs_no_handlers(tmp_path):
    found = []
    thread = threading.Thread(target=lambda: found.append(digest(run(tmp_path))))
    thread.start()
    thread.join()
    assert found == [digest(run(None))]


def test_without_a_folder_there_is_nothing_to_save():
    class Interrupted(Points):
        def losses(self, step, items):
            assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
            signal.raise_signal(signal.SIGINT)
            raise AssertionError

    with pytest.raises(KeyboardInterrupt):
        run(None, Interrupted)


def test_a_held_signal_comes_at_the_end_and_once():
    lines = []

    def work():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
            signal.raise_signal(number)
        lines.append("in the block")

    with pytest.raises(KeyboardInterrupt), stop_once(), held():
        work()
    assert lines == ["in the block"]
    with stop_once():
        with pytest.raises(Interrupted) as caught, held():
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)  # the first is being dealt with
    assert caught.value.code == 143


def test_blocks_in_blocks_keep_the_outer_ones_handler():
    with stop_once():
        outer = signal.getsignal(signal.SIGINT)
        with stop_once(), held():
            pass
        assert signal.getsignal(signal.SIGINT) is outer
        assert isinstance(outer, signals._First)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("step", [0, 3])
def test_a_metric_that_exits_is_an_error_of_its_own(tmp_path, step):
    class Exiting(Points):
        def losses(self, at, items):
            if at == step:
                sys.exit(0)
            return super().losses(at, items)

    with pytest.raises(StoppedRunError if step else adp.InputError, match=r"ended the program: exit\(0\)"):
        run(tmp_path, Exiting)


def test_gradients_that_are_not_finite_do_not_reach_the_variables(tmp_path):
    """sqrt at 0: the loss is finite, its slope is not."""

    class Spoilt(Points):
        def losses(self, step, items):
            values, rank, _ = super().losses(step, items)
            if step == 4:
                values = values + (self.variables["noise"][items].sum(1) * 0).sqrt()
            return adp.tasks.Losses(values, rank)

    Spoilt.__name__ = "Points"
    with pytest.raises(StoppedRunError, match=r"step 4 of 12.*gradient of 'noise' is not finite"):
        run(tmp_path, Spoilt)
    assert digest(run(tmp_path)) == digest(run(None))
    assert torch.isfinite(run(tmp_path).best["noise"]).all()
