"""What is said about pictures: rates with Wilson intervals, and pictures as their files hold them."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from .._types import Cond, InputError
from ..pictures import as_8_bit
from ..sampler import Sampler
from .processes import Processes

__all__ = ["Mean", "Rate", "example", "rows", "said", "sampled", "saved"]


@dataclass(frozen=True)
class Rate:
    """So many of so many, with the 95 % interval of Wilson (1927).

    (p + z^2 / 2n +- z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n),   z = 1.96
    """

    hits: int
    of: int

    @classmethod
    def of_mask(cls, mask: Tensor) -> "Rate":
        """The share of true entries."""
        return cls(int(mask.sum()), mask.numel())

    @property
    def share(self) -> float:
        """Between 0 and 1; 0 of nothing."""
        return self.hits / self.of if self.of else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """Its 95 % interval; everything, of nothing."""
        if not self.of:
            return 0.0, 1.0
        z, n, p = 1.959963984540054, self.of, self.share
        middle = p + z * z / (2 * n)
        half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return max(0.0, (middle - half) / (1 + z * z / n)), min(1.0, (middle + half) / (1 + z * z / n))

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.share:.1f} % ({self.hits} of {self.of}; 95 %: {100 * low:.0f} to {100 * high:.0f})"

    def as_dict(self) -> dict[str, int | float]:
        """For JSON."""
        low, high = self.interval
        return {"hits": self.hits, "of": self.of, "share": self.share, "low": low, "high": high}


@dataclass(frozen=True)
class Mean:
    """A mean over pictures with its 95 % interval by the normal approximation."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Tensor) -> "Mean":
        """Of one value a picture; the interval of a single one is everything."""
        mean, n = float(values.mean()), len(values)
        half = 1.96 * float(values.std()) / n**0.5 if n > 1 else float("inf")
        return cls(mean, mean - half, mean + half)

    def __str__(self) -> str:
        return f"{self.mean:.4f} ({self.low:.4f} to {self.high:.4f})"

    def as_dict(self) -> dict[str, float]:
        """For JSON."""
        return asdict(self)


def rows(cond: Cond, items: list[int]) -> Cond:
    """The conditioning of some items of a batch."""
    return cond.map(lambda tensor: tensor[items] if tensor.ndim and len(tensor) > 1 else tensor)


def example(sampler: Sampler) -> Tensor:
    """An image (channels, height, width) of zeros as a sampler makes them, without making one.

    Raises:
        InputError: it says nothing of its images' shape, or they cannot be saved as grey or RGB.
    """
    shape = getattr(sampler, "image_shape", None)
    if not isinstance(shape, tuple | torch.Size) or len(shape) != 3 or shape[0] not in (1, 3):
        raise InputError(
            f"the sampler's image_shape must be (1 or 3, height, width), but is {shape}; a Sampler of one's own sets it"
        )
    return sampler.noise(1, 0).new_zeros(tuple(shape))


def saved(images: Tensor) -> Tensor:
    """Pictures as they come back from their files: clamped, rounded to 8 bits, in [0, 1]."""
    return as_8_bit(images).to(images.device, images.dtype) / 255


def sampled(
    sampler: Sampler, noise: Tensor, cond: Cond, batch: int, processes: Processes | None = None
) -> Tensor:
    """Pictures of many noises without a gradient, in parts and over processes, the same in all of them."""
    processes = processes or Processes.here()
    images = torch.zeros(len(noise), *sampler.image_shape, dtype=noise.dtype, device=noise.device)
    mine = processes.part(range(len(noise)))
    with torch.no_grad():
        for first in range(0, len(mine), batch):
            part = mine[first : first + batch]
            images[part] = sampler(noise[part], rows(cond, part))
    processes.sum_([images])
    return images


def said(classifier: Callable[[Tensor], Tensor], images: Tensor, batch: int = 64) -> Tensor:
    """Logits of pictures, in parts."""
    with torch.no_grad():
        return torch.cat([classifier(part) for part in images.split(batch)])
