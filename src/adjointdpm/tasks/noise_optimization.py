"""What `guide` and `audit` share: the optimization of the initial noise of single images, and what it may cost.

    stage(k) = floor(S k / K)     of step k of K; S numbers of sampling steps, the sampler's own last
    starts(k) = ceil(n / 2^k)     of each image, of the n that were drawn: those of the lowest rank
    calls = sum_k 2 c(stage(k)) starts(k) + c(S - 1)    of an image, forward and backward; c in one sampling

Few sampling steps solve the same ODE as many, at a larger error: its gradient shows the way from far off. An iterate of
a later stage is better than one of an earlier stage, whatever their losses are, and one in which the judge no longer
sees its object is never the best. A recomputation of calls is a matter of memory and is not counted.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import torch
from torch import Tensor

from .._types import Cond, InputError, Range, Stats
from ..optimization.task import Losses, Standing, Task
from ..optimization.white_noise import check_size, projected
from ..samplers.base import Sampler
from ..samplers.flow_sampler import FlowSampler
from .evaluation import predict
from .frames import sample_frames
from .sampling import rows, saved
from .settings import Count, TaskSettings

__all__ = ["Judged", "NoiseSettings", "NoiseTask", "Stages"]

S = TypeVar("S", bound="NoiseSettings")

_EARLIER = 1e9  # added to the rank of an iterate for each stage that is still to come


@dataclass(frozen=True, kw_only=True)
class NoiseSettings(TaskSettings):
    """How a task optimizes the noise of single images.

    Args:
        coarse_steps: Number of sampling steps of an earlier part of the optimization. May be repeated; the parts are of
            equal length, and the last one has the sampler's own number.
        calls: Denoiser calls for an image, forward and backward, from which the number of optimization steps follows,
            in place of max_train_steps.
        white_noise: Project the noise onto white noise after each step, so that it has no pattern.
        best_of: Number of starts drawn for each image; after each step the worse half is dropped, until one is left.
        judge_patience: Number of steps in a row without the judge's label after which an image is optimized no more; no
            such iterate is kept, so that the judge's share is no longer independent.

    Raises:
        InputError: a value lies outside its range, or coarse_steps fall.
    """

    coarse_steps: Annotated[tuple[int, ...], Range(1)] = ()
    calls: Annotated[int | None, Range(1)] = None
    white_noise: bool = False
    best_of: Count = 1
    judge_patience: Annotated[int | None, Range(1)] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if list(self.coarse_steps) != sorted(self.coarse_steps):
            raise InputError(
                f"coarse_steps must not fall, few sampling steps first, but are {list(self.coarse_steps)}"
            )


@dataclass(frozen=True, eq=False)
class Stages:
    """The samplers of an optimization's parts, and what it may cost.

    samplers   one a stage; the last one is the task's own
    calls      denoiser calls of one sampling with each
    steps      number of optimization steps
    best_of    starts of each image
    extra      denoiser calls of an image before the optimization begins, besides those of its first start
    """

    samplers: tuple[Sampler, ...]
    calls: tuple[int, ...]
    steps: int
    best_of: int = 1
    extra: int = 0

    @classmethod
    def of(
        cls, sampler: Sampler, settings: "NoiseSettings", prompt: str, judge: Any, extra: bool = False
    ) -> "Stages":
        """Make and try the samplers, and find the number of steps.

        Args:
            sampler: makes the images.
            settings: what is optimized.
            prompt: for the trial.
            judge: that of the task.
            extra: whether the images of all starts are made before the optimization.

        Returns:
            the stages, with as many steps as the settings say.

        Raises:
            InputError: the sampler counts no calls, or cannot make fewer steps; the calls are too few for one step; the
                noise is too small for a spectrum; patience without a judge.
        """
        if settings.judge_patience is not None and judge is None:
            raise InputError(
                "judge_patience waits for a judge, but there is none; give one, or leave it out"
            )
        noise, cond = sampler.noise(1), sampler.encode([prompt])
        if settings.white_noise:
            check_size(tuple(noise.shape[1:]))
        samplers = [*(_coarser(sampler, steps) for steps in settings.coarse_steps), sampler]
        calls = [_calls(each, noise, cond) for each in samplers]
        for steps, each in zip(settings.coarse_steps, calls, strict=False):
            if each >= calls[-1]:
                raise InputError(
                    f"coarse_steps are fewer than the sampler's own steps ({sampler.steps}), but hold {steps}"
                )
        more = (settings.best_of - 1) * calls[-1] if extra else 0
        made = cls(tuple(samplers), tuple(calls), settings.max_train_steps, settings.best_of, more)
        return made if settings.calls is None else made._within(settings.calls)

    def _within(self, most: int) -> "Stages":
        """Return the same with the largest number of steps whose calls are no more than `most`.

        Raises:
            InputError: there is none.
        """
        fitting = [
            each
            for steps in range(1, 1 + most // 2)
            if (each := Stages(self.samplers, self.calls, steps, self.best_of, self.extra)).planned <= most
        ]
        if not fitting:
            least = Stages(self.samplers, self.calls, 1, self.best_of, self.extra).planned
            raise InputError(f"calls = {most} allow no step of the optimization; one takes {least}")
        return fitting[-1]

    def at(self, step: int) -> int:
        """Return the stage of a step."""
        return min(self.last, len(self.samplers) * step // self.steps)

    @property
    def last(self) -> int:
        """The stage of the task's own sampler."""
        return len(self.samplers) - 1

    def starts(self, step: int) -> int:
        """Return how many starts of each image step `step` has at most."""
        return -(-self.best_of // 2 ** min(step, 60))

    @property
    def planned(self) -> int:
        """Denoiser calls of an image, forward and backward, to the image that is found."""
        return self.spent([self.starts(step) for step in range(self.steps)], 1) + self.calls[-1]

    def spent(self, taken: Sequence[int], images: int) -> int:
        """Return the calls of an image in an optimization, forward and backward, rounded up.

        Args:
            taken: number of starts that each step differentiated.
            images: number of images that they are starts of.
        """
        total = sum(2 * self.calls[self.at(step)] * starts for step, starts in enumerate(taken))
        return self.extra + -(-total // images)

    @property
    def agreed(self) -> dict[str, Any]:
        """What a checkpoint must agree on besides the settings: where the stages begin."""
        count = len(self.samplers)
        return {"stages": [-(-stage * self.steps // count) for stage in range(count)]} if count > 1 else {}


@dataclass(frozen=True, eq=False)
class Judged:
    """Which images a judge should still recognize.

    Args:
        judge: images in [0, 1] to logits.
        labels: (items,) its label of each.
        watched: (items,) whether it recognizes the original; the others cannot fall.
        patience: number of iterates in a row after which an item is given up.
    """

    judge: Callable[[Tensor], Tensor]
    labels: Tensor
    watched: Tensor
    patience: int

    @classmethod
    def of(cls, judge: Any, labels: Tensor, originals: Tensor, patience: int | None) -> "Judged | None":
        """Judge the originals; None where nothing is to be judged."""
        if patience is None:
            return None
        says = predict(judge, saved(originals)).argmax(1)
        return cls(judge, labels.to(says.device), says == labels.to(says.device), patience)

    def fallen(self, images: Tensor, items: list[int]) -> Tensor:
        """Return which images it no longer recognizes, as they would be saved."""
        says = predict(self.judge, saved(images.detach())).argmax(1)
        return self.watched[items] & (says != self.labels[items])


class NoiseTask(Task):
    """The noise of single images, a row each; a subclass says what is minimised.

    Args:
        stages: make the images.
        cond: the conditioning of all rows.
        noise: (items, *shape), copied; `groups` says which rows are starts of the same image.
        groups: (items,) the number of the image of each row; an image each if None.
        white: whether the noise is projected onto white noise.
        judged: which images may not fall; None for none.
    """

    per_item = True

    def __init__(
        self,
        stages: Stages,
        cond: Cond,
        noise: Tensor,
        groups: Sequence[int] | None = None,
        white: bool = False,
        judged: Judged | None = None,
    ) -> None:
        self.stages, self.cond = stages, cond
        self.groups = list(range(len(noise)) if groups is None else groups)
        self.white, self.judged = white, judged
        self.items, self.variables = len(noise), {"noise": noise.clone()}
        self.stats = Stats()

    def sampled(self, step: int, items: list[int], frames: Sequence[int] | None = None) -> Tensor:
        """Return the images of some rows, or some frames of their videos, of the stage of a step."""
        sampler = self.stages.samplers[self._stage(step)]
        images = sample_frames(sampler, self.variables["noise"][items], rows(self.cond, items), frames)
        if images.requires_grad:
            self.stats = sampler.stats
        return images

    def _stage(self, step: int) -> int:
        """Return the stage of a step; the last one without a graph, where the last iterate is scored."""
        return self.stages.at(step) if torch.is_grad_enabled() else self.stages.last

    def ranked(self, step: int, items: list[int], images: Tensor, found: Losses) -> Losses:
        """Return losses whose rank knows the stage and the judge."""
        rank = (found.values if found.rank is None else found.rank).detach().double()
        rank = rank + _EARLIER * (self.stages.last - self._stage(step))
        if self.judged is None:
            return Losses(found.values, rank)
        fallen = self.judged.fallen(images, items)
        return Losses(found.values, torch.where(fallen, torch.inf, rank), fallen)

    def going_on(self, step: int, standing: Standing) -> Tensor:
        """Leave out the worse starts of each image, and what the judge has not recognized for too long."""
        left = standing.active.clone()
        if self.judged is not None:
            left &= standing.fallen < self.judged.patience
        if self.stages.best_of > 1:
            for rows_ in _grouped(self.groups):
                mine = sorted((i for i in rows_ if left[i]), key=lambda i: float(standing.rank[i]))
                left[mine[self.stages.starts(step + 1) :]] = False
        return left

    def chosen(self, ranks: Tensor) -> list[int]:
        """Return the row of each image whose best iterate has the lowest rank."""
        return [min(rows_, key=lambda i: float(ranks[i])) for rows_ in _grouped(self.groups)]

    def bytes_saved(self) -> int | None:
        return self.stats.bytes_saved

    def project(self) -> None:
        if self.white:
            noise = self.variables["noise"]
            noise.copy_(projected(noise))


def _grouped(groups: Sequence[int]) -> list[list[int]]:
    """Return the rows of each image, in the order of the images."""
    found: dict[int, list[int]] = {}
    for row, image in enumerate(groups):
        found.setdefault(image, []).append(row)
    return [found[image] for image in sorted(found)]


def _coarser(sampler: Sampler, steps: int) -> Sampler:
    """Return the sampler with fewer steps.

    Raises:
        InputError: it cannot make fewer that come to the same image in the limit.
    """
    todo = "leave out coarse_steps"
    if "steps" not in sampler.settings:
        raise InputError(f"a {type(sampler).__name__} has no number of steps to exchange; {todo}")
    if isinstance(sampler, FlowSampler):
        if isinstance(sampler.grid, Tensor):
            raise InputError(
                f"the sampler's grid is a list of {len(sampler.grid)} times, which says nothing of other steps; give a "
                f"function such as grids.uniform, or {todo}"
            )
        if sampler.solver.drift != 1:
            raise InputError(
                f"{type(sampler.solver).__name__} adds noise in its steps, so that few steps lead to another image "
                f"than many; use a solver of the ODE, or {todo}"
            )
    return sampler.replace(steps=steps)


def _calls(sampler: Sampler, noise: Tensor, cond: Cond) -> int:
    """Return the denoiser calls of one sampling.

    Raises:
        InputError: the sampler does not count them.
    """
    with torch.no_grad():
        sampler.forward(noise, cond)  # a trial: hooks wait for the task's own calls
    stats = getattr(sampler, "stats", None)
    if not isinstance(stats, Stats) or not stats.nfe_forward:
        raise InputError(
            f"a {type(sampler).__name__} does not count its denoiser calls, which this task compares; set "
            "self.stats = Stats(nfe_forward=...) in its forward"
        )
    return stats.nfe_forward
