"""What a run does: the task of a choice on a sampler, watched, and what it reports on the way.

    noise    guide     its noise.safetensors
    token    invert    its learned_embeds.safetensors
    lora     tune      its pytorch_lora_weights.safetensors

The task writes its folder as it always does; before.png and after.png are added.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from jaxtyping import UInt8
from torch import Tensor

from ..adjoints import Adjoint
from ..files.atomic_write import write_file
from ..files.images import as_8_bit, png
from ..optimization.task import RunOptions
from ..samplers.flow_sampler import FlowSampler
from ..solvers import Solver
from ..tasks.guide.guide import GuideSettings, guide
from ..tasks.invert.goals import MetricGoal
from ..tasks.invert.invert import InvertSettings, invert
from ..tasks.invert.learned_token import TokenVectors
from ..tasks.tune.tune import TuneSettings, tune
from .choice import TOKEN, Choice, solver_for
from .watch import Watch

__all__ = ["Finished", "First", "Loaded", "Model", "Progress", "finished"]


@dataclass(frozen=True, eq=False)
class Loaded:
    """A model in memory.

    Args:
        sampler: over it.
        metric_of: the metric that some texts stand for, as of `--metric`.
    """

    sampler: FlowSampler
    metric_of: Callable[[Sequence[str]], Any]


@dataclass(frozen=True, eq=False)
class Model:
    """What the studio works with.

    Args:
        name: of the model, for the page.
        load: loads it anew.
        adjoint_of: the adjoint of a name.
        solver_of: the solver of a name.
        solver: the name of the solver.
        flags: returns what describes the model, and the networks of some metrics, on the command line.
        labels: what the classifier knows; empty without one.
        has_features: whether there are features that style compares.
        has_clip: whether there is a CLIP model for texts.
        metrics: further metrics that can be chosen, as of `--metric`.
    """

    name: str
    load: Callable[[], Loaded]
    adjoint_of: Callable[[str], Adjoint]
    solver_of: Callable[[str], Solver]
    solver: str = "dpm++"
    flags: Callable[[Sequence[str]], Sequence[str]] = lambda metric: ()
    labels: tuple[str, ...] = ()
    has_features: bool = False
    has_clip: bool = False
    metrics: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class First:
    """The image before the optimization.

    Args:
        image: (3, height, width), uint8.
    """

    image: UInt8[Tensor, "3 h w"]


@dataclass(frozen=True, eq=False)
class Progress:
    """A step was taken.

    Args:
        step: how many were.
        steps: of how many.
        values: the metric at each.
        image: the image that was measured last, (3, height, width), uint8.
        maps: the gradient's size by place, as of `Watch`.
        calls: denoiser calls so far, forward and backward.
        bytes_saved: bytes saved for the backward pass; None where torch cannot count them.
        seconds: since the turn came.
    """

    step: int
    steps: int
    values: list[float]
    image: UInt8[Tensor, "3 h w"]
    maps: dict[str, Tensor]
    calls: int
    bytes_saved: int | None
    seconds: float


@dataclass(frozen=True, eq=False)
class Finished:
    """The task has written its files.

    Args:
        before: the file of the image before.
        after: the file of the image of the best iterate.
        values: the metric before and after, of these images.
        curve: the metric at each iterate.
        artefact: the file of what was learned.
        page: the task's page.
        command: repeats the run, with all of its steps.
        step: how many steps were taken.
        steps: of how many; fewer were taken if somebody stopped it.
        seconds: since the turn came.
    """

    before: Path
    after: Path
    values: tuple[float, float]
    curve: Sequence[float]
    artefact: Path
    page: Path
    command: str
    step: int
    steps: int
    seconds: float


def finished(
    model: Model,
    loaded: Loaded,
    choice: Choice,
    folder: Path,
    stop: Callable[[], bool],
    send: Callable[[First | Progress], None],
) -> Finished:
    """Do what was chosen.

    Args:
        model: what the studio works with.
        loaded: the model in memory; a token or a LoRA stays in it.
        choice: what to do.
        folder: for the task's files.
        stop: called before each step; where it returns True, the run ends there.
        send: called with what happens.

    Returns:
        Finished: what was made.

    Raises:
        AdjointDPMError: the task refuses what was chosen, or fails.
    """
    began = time.perf_counter()
    solver = solver_for(choice.adjoint, model.solver)
    sampler = loaded.sampler.replace(
        steps=choice.sampling_steps,
        adjoint=model.adjoint_of(choice.adjoint),
        solver=None if solver == model.solver else model.solver_of(solver),
    )
    watch, values = Watch(loaded.metric_of(choice.metric), " + ".join(choice.metric)), list[float]()
    watch.attach(sampler, lambda images: send(First(as_8_bit(images[0]))))

    def report(step: int, _: dict[str, float]) -> None:
        assert watch.images is not None
        assert watch.value is not None
        values.append(watch.value)
        send(
            Progress(
                step,
                choice.steps,
                list(values),
                as_8_bit(watch.images[0]),
                dict(watch.maps),
                watch.calls,
                watch.bytes_saved,
                time.perf_counter() - began,
            )
        )

    command = choice.command(model.flags(choice.metric), model.solver)
    options = RunOptions(quiet=True, report=report, stop=stop, repeat=command)
    done = _TASKS[choice.variable](choice, sampler, watch, folder, options)
    for name, made in (("before", done.before), ("after", done.after)):
        write_file(folder / f"{name}.png", png(as_8_bit(made)))
    return Finished(
        folder / "before.png",
        folder / "after.png",
        done.values,
        done.curve or values,
        done.artefact,
        folder / "index.html",
        command,
        len(values),
        choice.steps,
        time.perf_counter() - began,
    )


class _Done(NamedTuple):
    """What a task made: two images, their metric, the file of what was learned, and the metric of each iterate."""

    before: Tensor
    after: Tensor
    values: tuple[float, float]
    artefact: Path
    curve: Sequence[float] = ()


def _noise(choice: Choice, sampler: FlowSampler, watch: Watch, folder: Path, run: RunOptions) -> _Done:
    settings = GuideSettings(
        max_train_steps=choice.steps,
        learning_rate=choice.learning_rate,
        seed=choice.seed,
        num_validation_images=1,
        train_batch_size=1,
        baselines=False,
    )
    found = guide(sampler, watch, choice.prompts[0], output=folder, settings=settings, run=run)
    before, after = found.methods["no guidance"], found.methods["noise"]
    values = before.means["metric"], after.means["metric"]
    return _Done(before.images[0], after.images[0], values, found.artefact, after.losses)


def _token(choice: Choice, sampler: FlowSampler, watch: Watch, folder: Path, run: RunOptions) -> _Done:
    trained, reported = choice.prompts
    settings = InvertSettings(
        max_train_steps=choice.steps,
        learning_rate=choice.learning_rate,
        seed=choice.seed,
        num_validation_images=1,
        train_batch_size=1,
    )
    learned, goal = TokenVectors(sampler, TOKEN, "a"), MetricGoal(watch)
    found = invert(
        sampler, learned, goal, trained, reported, token=TOKEN, output=folder, settings=settings, run=run
    )
    seen = found.reports["seen noise"]
    assert seen.metric_before is not None  # a metric needs no targets
    assert seen.metric_after is not None
    values = seen.metric_before, seen.metric_after
    return _Done(seen.before[0], seen.after[0], values, found.artefact, found.losses)


def _lora(choice: Choice, sampler: FlowSampler, watch: Watch, folder: Path, run: RunOptions) -> _Done:
    trained, reported = choice.prompts
    settings = TuneSettings(
        max_train_steps=choice.steps,
        learning_rate=choice.learning_rate,
        seed=choice.seed,
        num_validation_images=1,
        train_batch_size=1,
        validation_steps=1,  # Each step is measured on the same noise, which is what the page shows.
    )
    found = tune(sampler, watch, trained, reported, output=folder, settings=settings, run=run)
    before, after = found.methods["untuned"], found.methods["metric"]
    values = float(before.values["metric"][0]), float(after.values["metric"][0])
    return _Done(before.images[0], after.images[0], values, found.artefact)


_TASKS: dict[str, Callable[[Choice, FlowSampler, Watch, Path, RunOptions], _Done]] = {
    "noise": _noise,
    "token": _token,
    "lora": _lora,
}
