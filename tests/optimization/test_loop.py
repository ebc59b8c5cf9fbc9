"""The tasks' loop: kills, stops and processes leave the same bits; the best iterate is kept."""

import os
import random
import resource
import signal
import socket
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

import adjointdpm as adp
from adjointdpm.files import atomic_write, checkpoint
from adjointdpm.files.checkpoint import load_checkpoint
from adjointdpm.optimization import gradient_step, loop, seeds, state
from adjointdpm.optimization.seeds import key
from adjointdpm.tasks import (
    AuditSettings,
    InterruptedRunError,
    LoopSettings,
    Losses,
    RunOptions,
    StoppedRunError,
    Task,
    optimize,
)
from adjointdpm.tasks.harden.dataset import clean_images
from tests import ROOT
from tests.tiny import two_tasks
from tests.tiny.loops import sgd
from tests.tiny.tasks import Halved, Points, Shift, adam, digest, mixture_sampler, run


class Parabola(Task):
    """(v - 1)^2, with a failure on demand."""

    items = 1

    def __init__(self, fail=None, start=0.0):
        self.variables = {"v": torch.tensor([start], dtype=torch.float64)}
        self.fail, self.steps = fail or (lambda step: None), []

    def losses(self, step, items):
        self.steps.append(step)
        spoilt = self.fail(step)
        value = (self.variables["v"] - 1) ** 2
        return Losses(value * float("nan") if spoilt else value)


class SmallParabola(Parabola):
    """Its name is of two words."""


def test_the_bar_names_the_task_in_words(capfd):
    optimize(SmallParabola(), sgd(0.1), LoopSettings(steps=1))
    assert "small parabola: 100%" in capfd.readouterr().err


class Killed(BaseException):
    pass


# A kill between opening a file and holding it leaves the file to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("kind", [Points, Halved, Shift])
def test_an_end_at_any_line_and_a_resumption_leave_the_same_bits(tmp_path, kind):
    """As a kill would, without a chance to save: at random lines of the loop, its state and its files."""
    truth = digest(run(None, kind))
    modules = (loop, state, checkpoint, seeds, gradient_step, atomic_write)
    files = {module.__file__ for module in modules}
    draw, kills = random.Random(1), 0
    while kills < 20:
        left = draw.randint(1, 900)

        def at_lines(frame, event, _):
            nonlocal left
            if frame.f_code.co_filename not in files:
                return None
            left -= event == "line"
            if left == 0:
                raise Killed
            return at_lines

        sys.settrace(at_lines)
        try:
            with torch.enable_grad():  # an end at the line of a `with` leaves gradients off
                run(tmp_path, kind)
        except Killed:
            kills += 1
        else:
            for each in tmp_path.iterdir():  # it came to its end: begin again
                each.unlink()
        finally:
            sys.settrace(None)
    assert digest(run(tmp_path, kind)) == truth


def test_twenty_kills_leave_the_same_bits(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tests.tiny.tasks", str(tmp_path), "20"],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == digest(run(None))


def test_the_best_iterate_is_kept_not_the_last():
    """A rate of 1.1 diverges: |v - 1| grows by 1.2 a step, so the first iterate is the best."""
    task = Parabola()
    found = optimize(task, sgd(1.1), LoopSettings(steps=4, run=RunOptions(quiet=True)))
    assert found.losses == pytest.approx([1.44**k for k in range(5)])
    assert (float(found.best["v"]), int(found.best_step)) == (0.0, 0)
    assert float(task.variables["v"].detach()) == 0.0


def test_the_last_iterate_is_scored_too():
    found = optimize(Parabola(), sgd(0.25), LoopSettings(steps=3, run=RunOptions(quiet=True)))
    assert int(found.best_step) == 3
    assert float(found.best["v"]) == pytest.approx(1 - 0.5**3)


class Validated(Parabola):
    """Parabola, whose validations note what they see."""

    def __init__(self, values=None):
        super().__init__()
        self.seen, self.values = [], values

    def validate(self, step):
        self.seen.append(float(self.variables["v"]))
        return -float(step) if self.values is None else self.values[step]


def test_the_average_is_validated_and_kept():
    """average <- d average + (1 - d) v with d = min(decay, (1 + k) / (10 + k)); the steps are those without it."""
    task, plain = Validated(), Validated()
    loop = LoopSettings(steps=4, validation_steps=1, ema_decay=0.2, run=RunOptions(quiet=True))
    found = optimize(task, sgd(0.25), loop)
    iterates = [1 - 0.5**k for k in range(5)]
    means, d = [0.0], [0.1, 2 / 11, 0.2, 0.2]
    for k in range(4):
        means.append(d[k] * means[-1] + (1 - d[k]) * iterates[k + 1])
    assert task.seen == pytest.approx(means)
    assert float(found.best["v"]) == pytest.approx(means[-1])
    assert float(task.variables["v"].detach()) == pytest.approx(means[-1])
    assert found.losses == pytest.approx([(1 - v) ** 2 for v in iterates])
    optimize(plain, sgd(0.25), LoopSettings(steps=4, validation_steps=1, run=RunOptions(quiet=True)))
    assert plain.seen == pytest.approx(iterates)


def test_an_average_needs_validations_and_shared_variables():
    with pytest.raises(adp.InputError, match="validation_steps"):
        LoopSettings(ema_decay=0.9)
    with pytest.raises(adp.InputError, match="each item has its own"):
        run(None, Points, ema_decay=0.9, validation_steps=2)


def test_patience_counts_validations():
    """Validated at 0, 2, 4, ...: the best is that of step 2, and two worse ones end the run at step 6."""
    values = {0: 3.0, 2: 1.0, 4: 2.0, 6: 2.0}
    loop = LoopSettings(steps=20, validation_steps=2, patience=2, run=RunOptions(quiet=True))
    found = optimize(Validated(values), sgd(0.25), loop)
    assert (int(found.best_step), found.steps) == (2, 7)
    assert float(found.best["v"]) == pytest.approx(0.75)


def test_a_schedule_of_ones_own_gives_the_rates():
    rates = []

    class Watched(torch.optim.SGD):
        def step(self, closure=None):
            rates.append(self.param_groups[0]["lr"])

    loop = LoopSettings(steps=3, schedule=lambda step: 1 / (1 + step), run=RunOptions(quiet=True))
    optimize(Parabola(), lambda leaves: Watched(leaves, 0.25), loop)
    assert rates == [0.25, 0.125, 0.25 / 3]


def test_each_item_keeps_its_own_best():
    found = run(None, Points, steps=15, batch_size=None, warmup=0, decay="constant")
    assert len(set(found.best_step.tolist())) > 1
    task = Points()
    with torch.random.fork_rng([]), torch.no_grad():
        for i, step in enumerate(found.best_step.tolist()):
            torch.manual_seed(key(0, step, 0))
            task.variables["noise"].copy_(found.best["noise"])
            again = task.losses(step, [0, 1, 2, 3, 4]).values[i]
            assert float(again) == pytest.approx(float(found.best_loss[i]), rel=1e-12)
    assert float((found.best["noise"] - task.centre).abs().max()) <= 0.8 + 1e-12


def test_validation_decides_where_it_is_asked():
    found = run(None, Shift, validation_steps=5, steps=30)
    assert int(found.best_step) % 5 == 0
    assert len(found.losses) == 31


def test_patience_and_aim_end_early():
    assert (
        optimize(Parabola(), sgd(1.1), LoopSettings(steps=50, patience=3, run=RunOptions(quiet=True))).steps
        == 4
    )
    aimed = optimize(
        Parabola(), sgd(0.25), LoopSettings(steps=50, stop_at=1e-3, run=RunOptions(quiet=True))
    )
    assert aimed.steps == 6  # 4^-5 < 1e-3, and the step after it is not scored
    assert float(aimed.best_loss) == pytest.approx(4**-5)


def test_rates_and_clipping_are_as_written():
    cosine = LoopSettings(steps=10, decay="cosine", warmup=1)
    assert [cosine.rate(0), cosine.rate(1), cosine.rate(10)] == pytest.approx([0.5, 1.0, 0.0])
    assert LoopSettings(steps=10, decay="linear").rate(5) == 0.5
    task = Parabola(start=-9.0)
    optimize(task, sgd(1.0), LoopSettings(steps=1, max_grad_norm=0.5, run=RunOptions(quiet=True)))
    assert float(task.variables["v"].detach()) == pytest.approx(-8.5)


def test_ctrl_c_saves_says_how_to_go_on_and_changes_nothing(tmp_path):
    truth = digest(run(None))

    class Interrupted(Points):
        def losses(self, step, items):
            if step == 7:
                signal.raise_signal(signal.SIGINT)
            return super().losses(step, items)

    Interrupted.__name__ = "Points"
    with pytest.raises(InterruptedRunError, match=r"step 7 of 12.*--resume"):
        run(tmp_path, Interrupted, checkpointing_steps=0)
    assert digest(run(tmp_path)) == truth


def test_ctrl_c_in_the_middle_of_a_step_waits_for_its_end(tmp_path):
    class Interrupted(Points):
        def project(self):
            signal.raise_signal(signal.SIGINT)
            super().project()

    Interrupted.__name__ = "Points"
    with pytest.raises(InterruptedRunError, match="step 1 of 12"):
        run(tmp_path, Interrupted, checkpointing_steps=0)
    assert digest(run(tmp_path)) == digest(run(None))


def raised(step):
    if step == 3:
        raise ZeroDivisionError("of the user's own")


@pytest.mark.parametrize(
    ("fail", "word"), [(raised, "ZeroDivisionError: of the user's own"), (lambda k: k == 3, "not finite")]
)
def test_a_metric_that_fails_keeps_the_best_and_names_it(tmp_path, fail, word):
    with pytest.raises(
        StoppedRunError, match=f"step 3 of 9.*{word}.*step 2.*checkpoint.safetensors"
    ) as caught:
        optimize(
            Parabola(fail), sgd(0.25), LoopSettings(steps=9, folder=tmp_path, run=RunOptions(quiet=True))
        )
    assert float(caught.value.outcome.best["v"]) == pytest.approx(0.75)
    tensors, _ = load_checkpoint(tmp_path / "checkpoint.safetensors")
    assert float(tensors["best/v"]) == pytest.approx(0.75)
    healed = optimize(
        Parabola(),
        sgd(0.25),
        LoopSettings(steps=9, folder=tmp_path, run=RunOptions(resume=True, quiet=True)),
    )
    assert float(healed.best["v"]) == 1 - 0.5**9


def test_a_metric_that_fails_at_once_is_just_its_error():
    with pytest.raises(adp.NonFiniteError):
        optimize(Parabola(lambda step: True), sgd(0.1), LoopSettings(steps=2, run=RunOptions(quiet=True)))


@pytest.mark.parametrize("first", [1, 6, 7])
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (Points, {}),
        (Points, {"patience": 3}),
        (Shift, {"validation_steps": 5}),
        (Shift, {"validation_steps": 5, "ema_decay": 0.8}),
        (Shift, {"batch_size": None, "max_grad_norm": 0.5}),
    ],
)
def test_more_steps_end_in_the_bits_of_one_run_of_all_of_them(tmp_path, kind, settings, first):
    """The last iterate of the shorter run was scored, and perhaps validated, which a longer run would not do there."""
    given = {"decay": "constant", "config": {"steps": 3}} | settings
    shorter = run(tmp_path, kind, steps=first, **given)
    longer = run(tmp_path, kind, steps=14, **given | {"config": {"steps": 5}})
    assert digest(longer) == digest(run(None, kind, steps=14, **given))
    assert longer.steps > shorter.steps or "patience" in settings
    assert digest(run(tmp_path, kind, steps=14, **given)) == digest(longer)


def test_a_run_that_is_stopped_scores_what_it_reached_and_can_go_on(tmp_path):
    def steps(folder, stop=None):
        options = RunOptions(resume=True, quiet=True, stop=stop)
        return optimize(Parabola(), sgd(0.25), LoopSettings(steps=6, folder=folder, run=options))

    asked = iter([False, False, True])
    short = steps(tmp_path, lambda: next(asked))
    assert short.steps == 2
    assert short.losses == pytest.approx([4.0**-k for k in range(3)])
    assert int(short.best_step) == 2
    assert digest(steps(tmp_path)) == digest(steps(None))
    assert steps(None, lambda: True).losses == pytest.approx([1.0])


def test_more_steps_of_a_falling_rate_go_on_with_a_warning(tmp_path):
    rates = []

    class Watched(torch.optim.SGD):
        def step(self, closure=None):
            rates.append(self.param_groups[0]["lr"])

    def steps(n):
        loop = LoopSettings(
            steps=n, decay="cosine", folder=tmp_path, run=RunOptions(resume=True, quiet=True)
        )
        return optimize(Parabola(), lambda leaves: Watched(leaves, 0.25), loop)

    steps(4)
    with pytest.warns(
        UserWarning, match=r"cosine decay.*over 4 steps for the first 4, and is that of 8 from now"
    ):
        assert steps(8).steps == 8
    four, eight = (LoopSettings(steps=n, decay="cosine") for n in (4, 8))
    assert rates == [0.25 * four.rate(k) for k in range(4)] + [0.25 * eight.rate(k) for k in range(4, 8)]
    assert steps(8).steps == 8  # without a warning


def test_an_interrupted_run_goes_on_with_more_steps(tmp_path):
    class Interrupted(Shift):
        def losses(self, step, items):
            if step == 4:
                raise KeyboardInterrupt
            return super().losses(step, items)

    Interrupted.__name__ = "Shift"
    with pytest.raises(InterruptedRunError):
        run(tmp_path, Interrupted, steps=6, decay="constant")
    assert digest(run(tmp_path, Shift, steps=9, decay="constant")) == digest(
        run(None, Shift, steps=9, decay="constant")
    )


def test_a_file_that_is_no_checkpoint(tmp_path):
    (tmp_path / "checkpoint.safetensors").write_bytes(b"not one")
    with pytest.raises(adp.InputError, match="damaged"):
        run(tmp_path)


def test_a_full_disk_is_one_line_and_the_earlier_checkpoint_is_intact(tmp_path):
    given = {
        "config": {"x": "y" * 5000},
        "decay": "constant",
    }  # so that it is longer than the trial at the start
    run(tmp_path, steps=3, **given)
    before = (tmp_path / "checkpoint.safetensors").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))  # as many bytes as the disk takes
    try:
        with pytest.raises(adp.InputError, match=r"cannot write.*File too large.*is intact") as caught:
            run(tmp_path, steps=6, **given)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(caught.value)
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == before
    names = {each.name for each in tmp_path.iterdir()}
    assert names == {"checkpoint.safetensors", "checkpoint.previous.safetensors"}


def test_a_variable_that_no_loss_depends_on():
    task = Parabola()
    task.variables["w"] = torch.zeros(2)
    with pytest.raises(adp.InputError, match="'w'"):
        optimize(task, adam, LoopSettings(steps=1, run=RunOptions(quiet=True)))


@pytest.mark.parametrize("name", ["steps", "batch_size", "accumulation", "patience"])
def test_numbers_below_one(name):
    with pytest.raises(adp.InputError, match=f"{name} must be at least 1"):
        LoopSettings(**{name: 0})


@pytest.mark.parametrize("name", ["warmup", "validation_steps", "checkpointing_steps"])
def test_numbers_below_zero(name):
    with pytest.raises(adp.InputError, match=f"{name} must be at least 0"):
        LoopSettings(**{name: -1})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, 0.0])
def test_numbers_that_are_none(value):
    with pytest.raises(adp.InputError, match="max_grad_norm must be above 0 and finite"):
        LoopSettings(max_grad_norm=value)
    if value not in (-1.0, 0.0):
        with pytest.raises(adp.InputError, match="stop_at must be finite"):
            LoopSettings(stop_at=value)


@pytest.mark.parametrize(
    ("optimizer", "words"),
    [
        (sgd(float("nan")), "lr of the optimizer must be finite, but is nan"),
        (sgd(float("inf")), "lr of the optimizer must be finite, but is inf"),
        (sgd(-0.1), "the optimizer cannot be made: Invalid learning rate: -0.1"),
        (lambda leaves: torch.optim.SGD(leaves, 0.1, momentum=float("nan")), "momentum .* nan"),
        (lambda leaves: torch.optim.Adam(leaves, 0.1, weight_decay=float("inf")), "weight_decay .* inf"),
    ],
)
def test_settings_of_the_optimizer_are_checked_before_the_work(optimizer, words):
    task = Parabola()
    with pytest.raises(adp.InputError, match=words):
        optimize(task, optimizer, LoopSettings(steps=1, run=RunOptions(quiet=True)))
    assert not task.steps


def test_the_loop_takes_no_draw_from_outside():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    run(None)
    assert torch.equal(torch.rand(3), expected)
    assert loop.Processes() == loop.Processes.here()


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A folder with what two processes found."""
    folder = tmp_path_factory.mktemp("two")
    for kind in (Points, Shift):
        (folder / kind.__name__).mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(two_tasks.work, (port, str(folder)), nprocs=two_tasks.WORLD)
    return folder


@pytest.mark.parametrize("kind", [Points, Shift])
def test_two_processes_end_as_one(two, kind):
    first, second = (load_file(two / f"{kind.__name__}.{rank}") for rank in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    # Points draws once a part of a batch; with as many parts as processes the draws are the same.
    alone = run(None, kind)
    if kind is Shift:
        assert float((first["shift"] - alone.best["shift"]).abs().max()) < 1e-12
        assert first["losses"].tolist() == pytest.approx(alone.losses, rel=1e-6)
    else:
        assert float((first["noise"] - Points().centre).abs().max()) <= 0.8 + 1e-12


def test_two_processes_share_the_clean_images(two):
    alone = clean_images(mixture_sampler(3), {"x": "a", "y": "b"}, 3, 5, AuditSettings(train_batch_size=2))
    assert alone.labels == ["a"] * 3 + ["b"] * 3
    assert len(alone.images.flatten(1).unique(dim=0)) == 6
    for rank in range(2):
        assert torch.equal(load_file(two / f"clean.{rank}")["images"], alone.images)


def test_a_failure_in_one_process_ends_both(two):
    message = [(two / f"failed.{rank}").read_text() for rank in range(2)]
    assert "another process failed" in message[0]
    assert "ZeroDivisionError: in one of them" in message[1]


def test_an_item_that_is_given_up_is_evaluated_no_more_and_keeps_its_best():
    """Items 1 and 3 are given up after steps 1 and 3; the rest goes on as if they had never been there."""
    asked = []

    class Fewer(Points):
        def losses(self, step, items):
            asked.append(list(items))
            points = self.sampler(self.variables["noise"][items], self.sampler.encode(["x"] * len(items)))
            return Losses(((points - 0.6) ** 2).sum((1, 2, 3)))

        def going_on(self, step, standing):
            gone = [[], [1], [1], [1, 3]][min(step, 3)]
            return torch.tensor([i not in gone for i in range(5)])

    loop = LoopSettings(steps=6, run=RunOptions(quiet=True))
    found = optimize(Fewer(), sgd(0.3), loop)
    assert asked == [[0, 1, 2, 3, 4]] * 2 + [[0, 2, 3, 4]] * 2 + [[0, 2, 4]] * 3
    assert found.taken == [5, 5, 4, 4, 3, 3]
    assert found.best_step[[1, 3]].tolist() == [1, 3]

    class All(Fewer):
        def going_on(self, step, standing):
            return standing.active

    whole = optimize(All(), sgd(0.3), loop)
    assert torch.equal(whole.best["noise"][[0, 2, 4]], found.best["noise"][[0, 2, 4]])
    assert not torch.equal(whole.best["noise"][1], found.best["noise"][1])


def test_a_run_ends_where_no_item_goes_on():
    class Fallen(Points):
        def losses(self, step, items):
            found = super().losses(step, items)
            return found._replace(fallen=torch.tensor([step >= 1 + i for i in items]))

        def going_on(self, step, standing):
            return standing.fallen < 2

    found = optimize(Fallen(), adam, LoopSettings(steps=20, run=RunOptions(quiet=True)))
    assert found.taken == [5, 5, 5, 4, 3, 2, 1]  # item i falls for the second time in step i + 2
    assert found.steps == len(found.losses) == 7  # what is given up is not scored again


def test_more_steps_of_a_run_that_gave_items_up_end_as_one_run(tmp_path):
    run(tmp_path, Halved, steps=4, decay="constant", warmup=0)
    more = run(tmp_path, Halved, steps=9, decay="constant", warmup=0)
    whole = run(None, Halved, steps=9, decay="constant", warmup=0)
    assert digest(more) == digest(whole)
    assert more.taken == whole.taken
    assert len(set(whole.taken)) > 1
