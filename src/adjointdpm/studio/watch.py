"""Watching a gradient: a metric that keeps what it sees, and the calls of the sampler beneath it.

    x = sampler(noise, cond)      kept: the first x of all, and from there on the newest x that the metric saw
    L(x)                          kept: its value, |dL/dx| by pixel, |dL/dnoise| by latent pixel

Tasks are not changed: they are given the metric and a sampler with torch's own hooks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._types import Stats
from ..metrics import beside, for_prompts
from ..metrics.base import Composed, Plain
from ..samplers.base import Sampler

__all__ = ["Watch", "heat"]


class Watch(Composed):
    """A metric that passes on what it sees; what it was given last is kept.

    Args:
        metric: any metric.
        name: how reports name it.

    Attributes:
        images: the newest images that were measured, (batch, 3, height, width).
        value: the mean of their metric.
        maps: by name, the newest gradient's size at each place of the first image; see `heat`.
        calls: denoiser calls so far, forward and backward.
        bytes_saved: bytes saved for the newest backward pass; None before one, or where torch cannot count them.
    """

    def __init__(self, metric: Any, name: str) -> None:
        self.metric, self._name = metric, name
        self.images: Tensor | None = None
        self.value: float | None = None
        self.maps: dict[str, Tensor] = {}
        self._stats: list[Stats] = []
        self._newest: Stats | None = None

    @property
    def parts(self) -> Sequence[Plain]:
        """The metric that is watched."""
        return [self.metric]

    @property
    def name(self) -> str:
        """How reports name it."""
        return self._name

    def beside(self, others: Tensor) -> Plain:
        """Return the metric beside the given images; what it sees is kept, too."""
        return _Watched(self, self.metric).beside(others)

    def for_prompts(self, prompts: Sequence[str]) -> Plain:
        """Return the metric for the given prompts; what it sees is kept, too."""
        return _Watched(self, self.metric).for_prompts(prompts)

    def __call__(self, images: Tensor) -> Tensor:
        return self.seen(images, self.metric)

    def attach(self, sampler: Sampler, first: Callable[[Tensor], None]) -> None:
        """Watch the calls of a sampler.

        Args:
            sampler: is called by a task from now on.
            first: called with the images of its first call without a graph.
        """
        started = False

        def before(_: Any, args: tuple[Any, ...]) -> None:
            noise = args[0]
            if torch.is_grad_enabled() and noise.requires_grad:
                noise.register_hook(self._kept("noise"))

        def after(module: Any, _: Any, images: Tensor) -> None:
            nonlocal started
            self._stats.append(module.stats)
            if images.requires_grad:
                self._newest = module.stats
            elif not started:
                started = True
                first(images.detach())

        sampler.register_forward_pre_hook(before)
        sampler.register_forward_hook(after)

    @property
    def calls(self) -> int:
        """Denoiser calls so far, forward and backward."""
        return sum(each.nfe_forward + each.nfe_backward for each in self._stats)

    @property
    def bytes_saved(self) -> int | None:
        """Bytes saved for the newest backward pass; None before one, or where torch cannot count them."""
        return None if self._newest is None else self._newest.bytes_saved

    def seen(self, images: Tensor, metric: Plain) -> Tensor:
        """Return a metric of images, and keep them, the value and, in a backward pass, the gradient."""
        values = metric(images)
        self.images, self.value = images.detach(), float(values.detach().mean())
        if images.requires_grad:
            images.register_hook(self._kept("image"))
        return values

    def _kept(self, name: str) -> Callable[[Tensor], None]:
        def keep(gradient: Tensor) -> None:
            self.maps[name] = heat(gradient[0])

        return keep


@dataclass(frozen=True, eq=False)
class _Watched(Composed):
    """A watched metric that has been given images of comparison or prompts."""

    watch: Watch
    metric: Plain

    @property
    def parts(self) -> Sequence[Plain]:
        return [self.metric]

    @property
    def name(self) -> str:
        return self.watch.name

    def beside(self, others: Tensor) -> Plain:
        return _Watched(self.watch, beside(self.metric, others))

    def for_prompts(self, prompts: Sequence[str]) -> Plain:
        return _Watched(self.watch, for_prompts(self.metric, prompts))

    def __call__(self, images: Tensor) -> Tensor:
        return self.watch.seen(images, self.metric)


def heat(gradient: Tensor) -> Tensor:
    """Return how large a gradient is at each place, in [0, 1]: its norm over channels, divided by the largest.

    Args:
        gradient: (channels, height, width).

    Returns:
        (height, width), on the CPU; zeros where the gradient is zero.
    """
    size = gradient.detach().float().norm(dim=0).cpu()
    return size / size.max().clamp(min=1e-30)
