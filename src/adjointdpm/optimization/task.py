"""What the loop is given: a task, its settings, and how the run goes on.

`losses` is a function of the variables, the step and the items, and nothing else: draw with
`seeds.key(seed, step, item)`. The global generators are seeded before each call.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import Tensor

from .._types import InputError, in_range

__all__ = ["LoopSettings", "Losses", "RunOptions", "Standing", "Task"]


class Losses(NamedTuple):
    """What is minimised, what decides which iterate is the best (the losses by default), and which fell: (items,) each.

    An iterate that `fallen` marks is one that a task does not want, such as an image in which a judge no longer sees
    its object; `Task.going_on` learns how many such iterates an item had in a row.
    """

    values: Tensor
    rank: Tensor | None = None
    fallen: Tensor | None = None


class Standing(NamedTuple):
    """Where the items stand after a step: (items,) each.

    rank      the lowest rank of each so far, float64
    fallen    number of iterates in a row, up to the newest, that `Losses.fallen` marked
    active    which of them are optimized
    """

    rank: Tensor
    fallen: Tensor
    active: Tensor


class Task(ABC):
    """What is optimized; see the head of this module.

    variables   named leaf tensors, changed in place
    items       number of things to optimize on: starts, prompts, images
    per_item    whether row i of every variable belongs to item i alone (then the best is kept row by row)
    joint       whether all processes take part in each other's calls, so that one that fails cannot tell the others
    """

    variables: Mapping[str, Tensor]
    items: int
    per_item: bool = False
    joint: bool = False

    @abstractmethod
    def losses(self, step: int, items: list[int]) -> Losses:
        """One loss an item, with a graph to the variables. Called without a graph for the last iterate."""

    def prepare(self) -> None:  # noqa: B027, there may be nothing to do
        """Change the variables' `.grad` before the optimizer's step, such as to length 1; none by default."""

    def project(self) -> None:  # noqa: B027
        """Put the variables back where they must be, in place, after the step; nothing by default."""

    def going_on(self, step: int, standing: Standing) -> Tensor:
        """Decide which items are optimized after this step, where items have rows of their own; all of them by default.

        An item that is left out keeps its best iterate and is not evaluated again. The result must be a function of the
        arguments alone, as `losses` is.

        Args:
            step: the number of the step.
            standing: where the items stand after it.

        Returns:
            (items,) of bool.
        """
        return standing.active

    def bytes_saved(self) -> int | None:
        """What the newest step held for its backward pass, in bytes, for the progress bar; None if not counted."""
        return None

    def validate(self, step: int) -> float:
        """What decides the best iterate where `LoopSettings.validation_steps` is set: lower is better.

        Raises:
            InputError: the task has no validation.
        """
        raise InputError(f"{type(self).__name__} has no validation; leave validation_steps at 0")


@dataclass(frozen=True)
class RunOptions:
    """How a run goes on and what it reports; no result depends on it.

    Args:
        resume: go on from the checkpoint in the run's folder; without one, a line says that the run starts anew.
        overwrite: start anew in a folder that holds an earlier run's results, and write over them, as a cell of a
            notebook that is run again; without it such a folder is refused.
        quiet: run without progress bars.
        report: called with (step, {"loss": ...}) after each step.
        images: called with (step, name, images) where a task makes images to look at as it goes.
        stop: called before each step; where it returns True, the run ends there as if that were its last step. Of
            several processes, all must get the same answer.
        config: further settings that a checkpoint must agree on, for JSON; the number of steps in it may differ.
        repeat: a command that repeats the run, for a task's page.

    Raises:
        InputError: the run is to be resumed and written over.
    """

    resume: bool = False
    quiet: bool = False
    report: Callable[[int, dict[str, float]], None] | None = None
    images: Callable[[int, str, Tensor], None] | None = None
    stop: Callable[[], bool] | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    repeat: str = ""
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.resume and self.overwrite:
            raise InputError(
                "resume=True goes on from an earlier run and overwrite=True replaces it; give one"
            )

    @property
    def earlier(self) -> bool | None:
        """The argument `resume` of `run_folder`: whether to go on from an earlier run, None to write over it."""
        return None if self.overwrite else self.resume


@dataclass(frozen=True)
class LoopSettings:
    """How the loop runs.

    Args:
        steps: N >= 1. A run that is resumed may have more than before; the steps done must not exceed it.
        batch_size: items a step over all processes; all of them if None.
        accumulation: in how many parts a process computes its share of a step's gradient (>= 1).
        max_grad_norm: longer gradients are scaled down to it, over all variables; None for none.
        decay: of the learning rate over the N steps: "constant", "linear" or "cosine" (to 0).
        warmup: steps over which it rises linearly from 0.
        patience: stop after so many scored iterates (validations, where there are some) without a better one; None
            for never.
        stop_at: stop when the rank of every item's best is at most this.
        schedule: the learning rate of step 0, 1, ..., as a fraction of the optimizer's own, in place of `decay` and
            `warmup`; None for those.
        ema_decay: d of an average of the iterates, which is then what is validated and kept as the best; None for
            none. It needs `validation_steps`, and variables that all items share.
        validation_steps: ask `Task.validate` which iterate is the best, every so many steps; 0 for never.
        seed: of the batches' order and of whatever a task draws.
        folder: for checkpoints, made if need be; None for none. It must not hold one already, unless `run.resume`.
        checkpointing_steps: save every so many steps; 0 only at the end and when interrupted.
        run: how the run goes on and what it reports.

    Raises:
        InputError: a number out of its range, not whole where it must be, or not finite.
    """

    steps: int = 100
    batch_size: int | None = None
    accumulation: int = 1
    max_grad_norm: float | None = None
    decay: Literal["constant", "linear", "cosine"] = "constant"
    warmup: int = 0
    patience: int | None = None
    stop_at: float | None = None
    schedule: Callable[[int], float] | None = None
    ema_decay: float | None = None
    validation_steps: int = 0
    seed: int = 0
    folder: str | Path | None = None
    checkpointing_steps: int = 10
    run: RunOptions = field(default_factory=RunOptions)

    def __post_init__(self) -> None:
        least = {"steps": 1, "batch_size": 1, "accumulation": 1, "patience": 1}
        least |= {"warmup": 0, "validation_steps": 0, "checkpointing_steps": 0, "seed": None}
        for name, lowest in least.items():
            value = getattr(self, name)
            if value is None and name in ("batch_size", "patience"):
                continue
            if isinstance(value, bool) or not isinstance(value, Integral):
                raise InputError(f"{name} must be a whole number, but is {value!r}")
            if lowest is not None and value < lowest:
                raise InputError(f"{name} must be at least {lowest}, but is {value}")
        if self.max_grad_norm is not None and not 0 < self.max_grad_norm < math.inf:
            raise InputError(
                f"max_grad_norm must be above 0 and finite (None for no clipping), but is {self.max_grad_norm}"
            )
        if self.stop_at is not None and not math.isfinite(self.stop_at):
            raise InputError(f"stop_at must be finite (None for never), but is {self.stop_at}")
        if self.ema_decay is not None:
            in_range("ema_decay", self.ema_decay, 0, 1)
            if not self.validation_steps:
                raise InputError("ema_decay averages what validations judge: set validation_steps, too")
        if self.decay not in ("constant", "linear", "cosine"):
            raise InputError(f"decay must be constant, linear or cosine, but is {self.decay!r}")

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, as a fraction of the optimizer's own."""
        if self.schedule is not None:
            return self.schedule(step)
        rise = min(1.0, (step + 1) / (self.warmup + 1))
        done = max(0, step - self.warmup) / max(1, self.steps - self.warmup)
        fall = {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 + 0.5 * math.cos(math.pi * done)}
        return rise * fall[self.decay]

    @property
    def checkpoint(self) -> Path | None:
        """The checkpoint's file."""
        return None if self.folder is None else Path(self.folder) / "checkpoint.safetensors"
