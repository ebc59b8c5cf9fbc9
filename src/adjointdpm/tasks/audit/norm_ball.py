"""Where a perturbed noise may be: balls around the noise it started from, and the Gaussian shell.

    L2      |x - c| <= r |c|                    r a fraction of the noise's norm
    Linf    |x_i - c_i| <= r                    r in standard deviations
    shell   |x| = |c|, besides |x - c| <= r |c|: the cap of half-angle 2 asin(r / 2)

High-dimensional Gaussian noise lies near the sphere of radius sqrt(d); a sampler has never seen other norms.
"""

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from ..._types import InputError, OneOf, Range

__all__ = ["Ball"]


def _norm(x: Tensor) -> Tensor:
    return x.flatten(1).norm(dim=1).clamp(min=1e-12).view(-1, *[1] * (x.ndim - 1))


@dataclass(frozen=True)
class Ball:
    """A ball around each noise of a batch.

    Args:
        radius: Radius of the perturbation, above 0: for l2 as a fraction of the noise's norm (below 2 on the shell),
            for linf in standard deviations.
        norm: Norm of the perturbation: l2 or linf.
        shell: Keep the noise's norm, too; with l2 only.

    Raises:
        InputError: another radius or norm, or a shell in the maximum norm.
    """

    radius: Annotated[float, Range(0, open_low=True)] = 0.1
    norm: Annotated[str, OneOf(("l2", "linf"))] = "l2"
    shell: bool = False

    def __post_init__(self) -> None:
        if self.norm not in ("l2", "linf"):
            raise InputError(f"a ball's norm is l2 or linf, but is {self.norm!r}")
        if not 0 < self.radius < (2 if self.shell else math.inf):
            raise InputError(
                f"a ball's radius must be above 0 (below 2 on the shell), but is {self.radius}"
            )
        if self.shell and self.norm == "linf":
            raise InputError("the Gaussian shell goes with the l2 ball; leave out the shell or use norm l2")

    def project(self, x: Tensor, centre: Tensor) -> Tensor:
        """Return the nearest point of the ball (on the shell: along the great circle)."""
        moved = x - centre
        if self.norm == "linf":
            return centre + moved.clamp(-self.radius, self.radius)
        size = _norm(centre)
        if not self.shell:
            return centre + moved * (self.radius * size / _norm(moved)).clamp(max=1)
        along = (x * centre).flatten(1).sum(1).view_as(size) / size
        across = x - along * centre / size
        away = _norm(across)
        angle = torch.atan2(away, along).clamp(max=2 * math.asin(self.radius / 2))
        return size * (angle.cos() * centre / size + angle.sin() * across / away)

    def direction(self, gradient: Tensor, centre: Tensor) -> Tensor:
        """Return the steepest step of the ball's own size: r |c| g / |g|, or r sign(g)."""
        if self.norm == "linf":
            return self.radius * gradient.sign()
        return self.radius * _norm(centre) * gradient / _norm(gradient)

    def distance(self, x: Tensor, centre: Tensor) -> Tensor:
        """Return the distances (batch,), in units of the radius: at most r within the ball."""
        moved = (x - centre).flatten(1)
        if self.norm == "linf":
            return moved.abs().amax(1)
        return moved.norm(dim=1) / centre.flatten(1).norm(dim=1)
