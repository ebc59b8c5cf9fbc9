"""Where an attack may go: balls around the noise or the image that it starts from.

    Ball, of noise          L2      |x - c| <= r |c|              r a fraction of the noise's norm
                            Linf    |x_i - c_i| <= r              r in standard deviations
                            shell   |x| = |c|, besides |x - c| <= r |c|: the cap of half-angle 2 asin(r / 2)
    ImageBall, of images    L2      |x - c| <= r,  0 <= x <= 1    r in units of the range [0, 1]
                            Linf    |x_i - c_i| <= r,  0 <= x <= 1

High-dimensional Gaussian noise lies near the sphere of radius sqrt(d); a sampler has never seen other norms.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from .._types import InputError, OneOf, Range
from ..files.images import as_8_bit
from ..flow.per_sample import dot, norms, widened

__all__ = ["Ball", "ImageBall", "Region"]


class Region(ABC):
    """Where an attack may go around each centre of a batch."""

    radius: float
    norm: str

    def centre_of(self, x: Tensor) -> Tensor:
        """Return the centre of the region around a given point."""
        return x.detach()

    @abstractmethod
    def project(self, x: Tensor, centre: Tensor) -> Tensor:
        """Return a point of the region near x, and x itself where it lies within."""

    @abstractmethod
    def direction(self, gradient: Tensor, centre: Tensor) -> Tensor:
        """Return the steepest step of the ball's own size along a gradient."""

    @abstractmethod
    def distance(self, x: Tensor, centre: Tensor) -> Tensor:
        """Return the distances (batch,), in the unit of the radius."""

    def random(self, normal: Tensor, centre: Tensor) -> Tensor:
        """Return a random point: uniform in a cube, or on the sphere of the ball's radius.

        Args:
            normal: (batch, *shape), standard normal draws.
            centre: (batch, *shape).
        """
        if self.norm == "linf":
            return self.project(centre + self.radius * torch.erf(normal / 2**0.5), centre)
        return self.project(centre + self.direction(normal, centre), centre)

    def finished(self, x: Tensor, centre: Tensor) -> Tensor:
        """Return a point as it is saved."""
        return x


@dataclass(frozen=True)
class Ball(Region):
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
        size = norms(centre)
        if not self.shell:
            return centre + moved * (self.radius * size / norms(moved)).clamp(max=1)
        along = widened(dot(x, centre), x) / size
        across = x - along * centre / size
        away = norms(across)
        angle = torch.atan2(away, along).clamp(max=2 * math.asin(self.radius / 2))
        return size * (angle.cos() * centre / size + angle.sin() * across / away)

    def direction(self, gradient: Tensor, centre: Tensor) -> Tensor:
        """Return the steepest step of the ball's own size: r |c| g / |g|, or r sign(g)."""
        if self.norm == "linf":
            return self.radius * gradient.sign()
        return self.radius * norms(centre) * gradient / norms(gradient)

    def distance(self, x: Tensor, centre: Tensor) -> Tensor:
        """Return the distances (batch,), in units of the radius: at most r within the ball."""
        moved = (x - centre).flatten(1)
        if self.norm == "linf":
            return moved.abs().amax(1)
        return moved.norm(dim=1) / centre.flatten(1).norm(dim=1)


@dataclass(frozen=True)
class ImageBall(Region):
    """A ball around each image of a batch, within the range [0, 1] of images.

    Args:
        radius: Radius of the perturbation, above 0, in units of the range [0, 1], such as 8/255.
        norm: Norm of the perturbation: l2 or linf.

    Raises:
        InputError: another radius or norm.

    Examples:
        >>> import torch
        >>> from adjointdpm.attacks import ImageBall
        >>> image = torch.full((1, 3, 2, 2), 0.5)
        >>> round(float(ImageBall(0.1).project(image + 1, image).max()), 4)
        0.6
    """

    radius: float = 8 / 255
    norm: str = "linf"

    def __post_init__(self) -> None:
        if self.norm not in ("l2", "linf"):
            raise InputError(f"a ball's norm is l2 or linf, but is {self.norm!r}")
        if not 0 < self.radius < math.inf:
            raise InputError(f"a ball's radius must be above 0, but is {self.radius}")

    def centre_of(self, x: Tensor) -> Tensor:
        """Return images as files of 8 bits hold them.

        Raises:
            InputError: a value lies outside [0, 1].
        """
        low, high = (float(each) for each in x.detach().aminmax())
        if not 0 <= low <= high <= 1:
            raise InputError(
                f"images are attacked in [0, 1], but reach from {low:g} to {high:g}; bring them to that range, or "
                "clamp them, and attack noise in a Ball"
            )
        return as_8_bit(x).to(x) / 255

    def project(self, x: Tensor, centre: Tensor) -> Tensor:
        """Return the nearest point of the ball, clamped to [0, 1], which brings it no further from the centre."""
        moved = x - centre
        if self.norm == "linf":
            moved = moved.clamp(-self.radius, self.radius)
        else:
            moved = moved * (self.radius / norms(moved)).clamp(max=1)
        return (centre + moved).clamp(0, 1)

    def direction(self, gradient: Tensor, centre: Tensor) -> Tensor:
        """Return the steepest step of the ball's own size: r g / |g|, or r sign(g)."""
        if self.norm == "linf":
            return self.radius * gradient.sign()
        return self.radius * gradient / norms(gradient)

    def distance(self, x: Tensor, centre: Tensor) -> Tensor:
        """Return the distances (batch,), in units of the range [0, 1]."""
        moved = (x - centre).flatten(1)
        return moved.abs().amax(1) if self.norm == "linf" else moved.norm(dim=1)

    def finished(self, x: Tensor, centre: Tensor) -> Tensor:
        """Return images of 8 bits, each pixel rounded towards the centre's, so that none leaves the ball.

        Args:
            x: (batch, channels, height, width), in the ball.
            centre: likewise, of 8 bits.
        """
        levels = 255 * (x - centre)
        # A whole number of levels that rounding errors brought just below itself is that number.
        steps = levels.sign() * (levels.abs() + 1e-3).floor()
        return ((255 * centre).round() + steps).clamp(0, 255) / 255
