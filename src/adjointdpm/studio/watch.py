"""Watching a gradient: a metric that keeps what it sees, and the calls of the sampler beneath it.

    x = sampler(noise, cond)      kept: the first x of all, and from there on the newest x that the metric saw
    L(x)                          kept: its value, |dL/dx| by pixel, |dL/dnoise| by latent pixel

Tasks are not changed: they are given the metric and a sampler with torch's own hooks.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .._types import Stats
from ..metrics import beside
from ..metrics.base import Paired, Plain
from ..samplers.base import Sampler

__all__ = ["Watch", "heat"]


class Watch(Paired):
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
        self.metric, self.__qualname__ = metric, name
        self.images: Tensor | None = None
        self.value: float | None = None
        self.maps: dict[str, Tensor] = {}
        self._stats: list[Stats] = []
        self._newest: Stats | None = None

    def beside(self, others: Tensor) -> Plain:
        """Return the metric beside the given images; what it sees is kept, too."""
        inner = beside(self.metric, others)
        return lambda images: self._seen(images, inner)

    def __call__(self, images: Tensor) -> Tensor:
        return self._seen(images, self.metric)

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

    def _seen(self, images: Tensor, metric: Plain) -> Tensor:
        values = metric(images)
        self.images, self.value = images.detach(), float(values.detach().mean())
        if images.requires_grad:
            images.register_hook(self._kept("image"))
        return values

    def _kept(self, name: str) -> Callable[[Tensor], None]:
        def keep(gradient: Tensor) -> None:
            self.maps[name] = heat(gradient[0])

        return keep


def heat(gradient: Tensor) -> Tensor:
    """Return how large a gradient is at each place, in [0, 1]: its norm over channels, divided by the largest.

    Args:
        gradient: (channels, height, width).

    Returns:
        (height, width), on the CPU; zeros where the gradient is zero.
    """
    size = gradient.detach().float().norm(dim=0).cpu()
    return size / size.max().clamp(min=1e-30)
