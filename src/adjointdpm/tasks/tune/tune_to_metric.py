"""The loss of tuning weights to a metric, with the untuned model's images as its reference."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ...metrics import beside, for_prompts
from ...metrics.check import score
from ...optimization.seeds import key
from ...optimization.task import Losses, Task
from ...samplers.base import Sampler
from ..sampling import network_of, noise_of, parts, rows
from .precision import scaled
from .shard import is_sharded


@contextmanager
def untuned(leaves: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> Iterator[None]:
    """The network as it was: the leaves hold what they held at the start."""
    kept = {name: leaf.detach().clone() for name, leaf in leaves.items()}
    with torch.no_grad():
        for name, leaf in leaves.items():
            leaf.copy_(start[name])
    try:
        yield
    finally:
        with torch.no_grad():
            for name, leaf in leaves.items():
                leaf.copy_(kept[name])


class TuneToMetric(Task):
    """Weights towards a metric, on some prompts and fresh noise a step.

    Args:
        sampler: makes the images.
        metric: of an image, or of it and the untuned model's (`metrics.Paired`).
        prompts: one item each.
        leaves: what is trained.
        seed: of the noise.
        batch: images at once in a validation.
    """

    def __init__(
        self,
        sampler: Sampler,
        metric: Any,
        prompts: Sequence[str],
        leaves: Mapping[str, Tensor],
        seed: int = 0,
        batch: int = 1,
    ) -> None:
        self.sampler, self.metric, self.seed, self.batch = sampler, metric, seed, batch
        self.prompts, self.variables, self.items = list(prompts), leaves, len(prompts)
        self.joint = is_sharded(network_of(sampler))
        self.start = {name: leaf.detach().clone() for name, leaf in leaves.items()}
        with torch.no_grad():
            self.cond = sampler.encode(prompts)

    def losses(self, step: int, items: list[int]) -> Losses:
        return self._of(f"step {step}", items)

    def validate(self, step: int) -> float:
        """Return the mean over all prompts with the same noise each time; a step's own would choose by chance."""
        with torch.no_grad():
            found = [self._of("validation", part).values for part in parts(self.items, self.batch)]
        return float(torch.cat(found).mean())

    def bytes_saved(self) -> int | None:
        return self.sampler.stats.bytes_saved

    def _of(self, draw: str, items: list[int]) -> Losses:
        noise = noise_of(self.sampler, [key(self.seed, "tune", draw, i) for i in items])
        cond = rows(self.cond, items)
        with untuned(self.variables, self.start), torch.no_grad():
            originals = self.sampler(noise, cond)
        metric = for_prompts(self.metric, [self.prompts[i] for i in items])
        values = score(beside(metric, originals), self.sampler(noise, cond))
        return Losses(scaled(values, list(self.variables.values()), network_of(self.sampler)))
