"""The loss of tuning weights to a metric, with the untuned model's images as its reference.

reward    l_i = L(x_theta(z_i, c_i); x_0(z_i, c_i)) + guards         by the sampler's own adjoint
matching  the regression of `AdjointMatching`, which has its own guard
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..._types import InputError
from ...metrics import beside, for_prompts
from ...metrics.base import is_paired
from ...metrics.check import score
from ...optimization.holding import holding
from ...optimization.seeds import key
from ...optimization.task import Losses, Task
from ...samplers.base import Sampler
from ...samplers.flow_sampler import FlowSampler
from ..frames import FrameDraws, frames_of, sample_frames
from ..sampling import network_of, noise_of, parts, rows
from .adjoint_matching import AdjointMatching
from .precision import scaled
from .reference_distance import ReferenceDistance
from .shard import is_sharded

__all__ = ["TuneToMetric", "needs_own_steps"]


def needs_own_steps(sampler: Sampler) -> None:
    """Refuse a sampler for adjoint matching and the guards.

    Args:
        sampler: makes the images.

    Raises:
        InputError: it is no FlowSampler.
    """
    if not isinstance(sampler, FlowSampler):
        raise InputError(
            "adjoint matching and the guards (kl_weight, norm_weight) take the sampler's steps one by one, which a "
            f"{type(sampler).__name__} does not have; use FlowSampler.from_pipeline(pipe), or another --solver"
        )


class TuneToMetric(Task):
    """Weights towards a metric, on some prompts and fresh noise a step.

    Args:
        sampler: makes the images.
        metric: of an image, or of it and the untuned model's (`metrics.Paired`).
        prompts: one item each.
        leaves: what is trained.
        seed: of the noise.
        batch: images at once in a validation.
        guards: what keeps the model near the untuned one.
        matching: the loss of adjoint matching in place of the metric's own gradient; None for that.
        validation_metric: what validations lower, such as a judge that is in no loss; the metric if None.
        frames_per_step: number of frames of a video that a step differentiates; all of them if None.
        validated: called with the step after each validation, while the leaves hold what was validated.

    Raises:
        InputError: guards or adjoint matching, and the sampler is no FlowSampler.
    """

    def __init__(
        self,
        sampler: Sampler,
        metric: Any,
        prompts: Sequence[str],
        leaves: Mapping[str, Tensor],
        seed: int = 0,
        batch: int = 1,
        *,
        guards: ReferenceDistance = ReferenceDistance(),  # noqa: B008, it is frozen
        matching: AdjointMatching | None = None,
        validation_metric: Any = None,
        validated: Callable[[int], None] | None = None,
        frames_per_step: int | None = None,
    ) -> None:
        if guards.used or matching is not None:
            needs_own_steps(sampler)
        self.sampler, self.metric, self.seed, self.batch = sampler, metric, seed, batch
        self.prompts, self.variables, self.items = list(prompts), leaves, len(prompts)
        self.joint = is_sharded(network_of(sampler))
        self.guards, self.matching, self.validated = guards, matching, validated
        self.frames = FrameDraws(sampler, frames_per_step, seed, metric)
        self.validation_metric = metric if validation_metric is None else validation_metric
        self.start = {name: leaf.detach().clone() for name, leaf in leaves.items()}
        with torch.no_grad():
            self.cond = sampler.encode(prompts)

    def losses(self, step: int, items: list[int]) -> Losses:
        draw = f"step {step}"
        noise, cond = self._inputs(draw, items)
        frames = self.frames.at(step)
        metric = self._of(self.metric, items, noise, cond, frames)
        seeds = [key(self.seed, "guard", draw, i) for i in items]
        sampler, shared = self.sampler, key(self.seed, "guard", draw)
        leaves = self.variables, self.start
        if self.matching is not None and isinstance(sampler, FlowSampler):
            values = self.matching(sampler, metric, noise, cond, *leaves, tuple(seeds), shared)
        elif self.guards.used and isinstance(sampler, FlowSampler):
            latents = sampler.latents(noise, cond, decoded=True)
            values = score(metric, sampler.decode(latents))
            values = values + self.guards(sampler.problem(noise, cond), latents, *leaves, seeds, shared)
        else:
            values = score(metric, sample_frames(sampler, noise, cond, frames))
        return Losses(scaled(values, list(self.variables.values()), network_of(sampler)))

    def validate(self, step: int) -> float:
        """Return the mean over all prompts with the same noise each time; a step's own would choose by chance."""
        found: list[Tensor] = []
        with torch.no_grad():
            for items in parts(self.items, self.batch):
                noise, cond = self._inputs("validation", items)
                metric = self._of(self.validation_metric, items, noise, cond)
                found.append(score(metric, self.sampler(noise, cond)))
        if self.validated is not None:
            self.validated(step)
        return float(torch.cat(found).mean())

    def bytes_saved(self) -> int | None:
        return self.sampler.stats.bytes_saved

    def _inputs(self, draw: str, items: list[int]) -> tuple[Tensor, Any]:
        """Return the noise and the conditioning of some items."""
        noise = noise_of(self.sampler, [key(self.seed, "tune", draw, i) for i in items])
        return noise, rows(self.cond, items)

    def _of(
        self, metric: Any, items: list[int], noise: Tensor, cond: Any, frames: Sequence[int] | None = None
    ) -> Any:
        """Return a metric for these prompts, beside the untuned model's images where it compares with them."""
        metric = for_prompts(metric, [self.prompts[i] for i in items])
        if not is_paired(metric):
            return metric
        with holding(self.variables, self.start), torch.no_grad():
            return beside(metric, frames_of(self.sampler(noise, cond), frames))
