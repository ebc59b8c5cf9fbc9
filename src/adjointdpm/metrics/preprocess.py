"""From an image to a network's input, in tensors only, so that the gradient comes back.

    u = (resize(x) - mean) / std                         `Preprocess`, the short form
    u = (step_n o ... o step_1)(x)                       `Steps`: what an image processor does, operation by operation

    resize   y_i = sum_j K((j + 1/2 - c_i) / s) x_j / sum_j K((j + 1/2 - c_i) / s),   c_i = (i + 1/2) n / m,
             s = max(1, n / m), from n to m pixels, one axis after the other: the resampling of Pillow

x lies in [0, 1] and is never clamped. Only the overshoot of a filter with negative lobes is cut, where Pillow's 8 bits
cut it: at the larger of the range [0, 1] and the image's own range.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import PIL
import torch
from torch import Tensor
from torch.nn import functional

from .._types import InputError

__all__ = [
    "CLIP", "FILTERS", "IMAGENET", "CenterCrop", "FlipChannels", "Pad", "Preprocess", "Resize", "Scale",
    "Standardize", "Steps",
]  # fmt: skip

Channels = tuple[float | int, ...]
Size = Callable[[int, int], tuple[int, int]]
"""From an image's height and width to other ones."""


@dataclass(frozen=True)
class Preprocess:
    """Resizing and normalization, as part of a metric.

        u = (resize(x) - mean) / std

    The whole image is resized to a square. Nothing is cropped, so that every pixel has an influence, but an image that
    is not square is distorted. Use `Steps` where a network was trained with crops.

    Args:
        size: side of the square in pixels, at least 1; None leaves the size unchanged.
        mean: the mean of each channel, in units of the range [0, 1]; one number holds for all channels.
        std: the standard deviation of each channel, above 0; one number holds for all channels.
        mode: the interpolation of the resizing, which is antialiased.

    Raises:
        InputError: size is below 1, or a standard deviation is not above 0.

    Examples:
        >>> import torch
        >>> import adjointdpm as adp
        >>> preprocess = adp.metrics.Preprocess(4, (0.5,) * 3, (0.5,) * 3)
        >>> preprocess(torch.ones(1, 3, 8, 8)).shape
        torch.Size([1, 3, 4, 4])
    """

    size: int | None = None
    mean: Channels = (0.0, 0.0, 0.0)
    std: Channels = (1.0, 1.0, 1.0)
    mode: Literal["bilinear", "bicubic"] = "bicubic"

    def __post_init__(self) -> None:
        if (self.size is not None and self.size < 1) or not all(s > 0 for s in self.std):
            raise InputError(
                f"size must be at least 1 and std positive, but are {self.size} and {self.std}"
            )

    def __call__(self, images: Tensor) -> Tensor:
        if self.size is not None and images.shape[-2:] != (self.size, self.size):
            images = functional.interpolate(
                images, (self.size, self.size), mode=self.mode, antialias=True, align_corners=False
            )
        return Standardize(self.mean, self.std)(images)


# The figures that CLIP's and most ImageNet networks were trained with.
CLIP = Preprocess(224, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
IMAGENET = Preprocess(224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bilinear")


@dataclass(frozen=True)
class Steps:
    """Operations that are applied one after the other.

        u = (step_n o ... o step_1)(x)

    Args:
        steps: the operations, first to last; the first takes images (batch, channels, height, width) in [0, 1].
    """

    steps: tuple[Callable[[Tensor], Tensor], ...]

    def __call__(self, images: Tensor) -> Tensor:
        for step in self.steps:
            images = step(images)
        return images


@dataclass(frozen=True)
class Scale:
    """A linear map of all values: gain x + offset.

    Args:
        gain: the factor.
        offset: the summand.
    """

    gain: float
    offset: float

    def __call__(self, images: Tensor) -> Tensor:
        return images * self.gain + self.offset


@dataclass(frozen=True)
class Standardize:
    """Normalization of each channel: (x - mean) / std.

    Args:
        mean: one number a channel, or one for all.
        std: one number a channel, or one for all; not 0.
    """

    mean: Channels
    std: Channels

    def __call__(self, images: Tensor) -> Tensor:
        mean, std = (images.new_tensor(each).view(1, -1, 1, 1) for each in (self.mean, self.std))
        return (images - mean) / std


@dataclass(frozen=True)
class FlipChannels:
    """The reversed order of channels: from red, green, blue to blue, green, red."""

    def __call__(self, images: Tensor) -> Tensor:
        return images.flip(1)


@dataclass(frozen=True)
class CenterCrop:
    """The middle of an image, with zeros around it where the image is smaller.

    Args:
        size: a function from the image's height and width to the crop's, in pixels.
    """

    size: Size

    def __call__(self, images: Tensor) -> Tensor:
        pads, starts, lengths = [], [], []
        for have, want in zip(images.shape[-2:], self.size(*images.shape[-2:]), strict=True):
            # The odd pixel of a border lies before the image, that of a crop behind it.
            before = math.ceil(max(0, want - have) / 2)
            pads.append((before, max(0, want - have) - before))
            starts.append((have - want) // 2 + before)
            lengths.append(want)
        images = functional.pad(images, (*pads[1], *pads[0]))
        return images.narrow(-2, starts[0], lengths[0]).narrow(-1, starts[1], lengths[1])


@dataclass(frozen=True)
class Pad:
    """Zeros at the right and at the bottom, up to a height and width.

    Args:
        height: the padded height in pixels.
        width: the padded width in pixels.

    Raises:
        InputError: when called, if the image is larger.
    """

    height: int
    width: int

    def __call__(self, images: Tensor) -> Tensor:
        down, right = self.height - images.shape[-2], self.width - images.shape[-1]
        if min(down, right) < 0:
            raise InputError(
                f"images are padded to {self.height} x {self.width}, but are {tuple(images.shape[-2:])}; resize first"
            )
        return functional.pad(images, (0, right, 0, down))


@dataclass(frozen=True)
class Resize:
    """Pillow's resampling as two products with constant matrices, one for each axis.

        y_i = sum_j K((j + 1/2 - c_i) / s) x_j / sum_j K((j + 1/2 - c_i) / s)

    Args:
        size: a function from the image's height and width to the new ones, in pixels.
        resample: Pillow's number of the filter K, 0 to 5; see `FILTERS`.
    """

    size: Size
    resample: int

    def __call__(self, images: Tensor) -> Tensor:
        height, width = self.size(*images.shape[-2:])
        if (height, width) == images.shape[-2:]:
            return images
        x = images.to(torch.promote_types(images.dtype, torch.float32))  # weights need more than 8 bits
        low = x.amin((1, 2, 3), keepdim=True).clamp(max=0)
        high = x.amax((1, 2, 3), keepdim=True).clamp(min=1)
        row = lambda u: u @ _weights(x.shape[-1], width, self.resample).to(u).T  # noqa: E731
        column = lambda u: _weights(x.shape[-2], height, self.resample).to(u) @ u  # noqa: E731
        passes = [row, column]
        # What is cut between the two passes depends on their order. Pillow 13 begins with the columns where
        # those lose many more pixels; before that, it never did.
        if _PILLOW >= 13 and x.shape[-2] - height > max(0, 2 * (x.shape[-1] - width)):
            passes.reverse()
        for each in passes:
            x = each(x).clamp(low, high) if self.resample in _OVERSHOOTING else each(x)
        return x.to(images.dtype)


def _cubic(u: Tensor) -> Tensor:
    u, a = u.abs(), -0.5
    near = ((a + 2) * u - (a + 3)) * u * u + 1
    return torch.where(u < 1, near, (((u - 5) * u + 8) * u - 4) * a)


FILTERS: dict[int, tuple[float, Callable[[Tensor], Tensor]]] = {
    1: (3.0, lambda u: torch.sinc(u) * torch.sinc(u / 3)),  # Lanczos
    2: (1.0, lambda u: 1 - u.abs()),  # bilinear
    3: (2.0, _cubic),  # bicubic
    4: (0.5, lambda u: ((u > -0.5) & (u <= 0.5)).double()),  # box
    5: (1.0, lambda u: torch.sinc(u) * (0.54 + 0.46 * torch.cos(math.pi * u))),  # Hamming
}
"""Half widths and kernels by Pillow's numbers; number 0 is the nearest pixel, which has neither."""

_OVERSHOOTING = (1, 3)
_PILLOW = int(PIL.__version__.split(".")[0])


@lru_cache(maxsize=64)
def _weights(old: int, new: int, resample: int) -> Tensor:
    """Return each new pixel's weights of the old ones, (new, old), float64 on the CPU."""
    scale = torch.full((new,), old / new, dtype=torch.float64)
    if resample == 0:
        # Summed as Pillow sums it: where a center falls on the border of two pixels, rounding decides.
        scale[0] /= 2
        nearest = scale.cumsum(0).long()
        return functional.one_hot(nearest.clamp(max=old - 1), old).double()
    centers = (torch.arange(new, dtype=torch.float64) + 0.5) * scale
    half, kernel = FILTERS[resample]
    stretch = max(1.0, old / new)
    first = (centers - half * stretch + 0.5).long().clamp(min=0)[:, None]
    last = (centers + half * stretch + 0.5).long().clamp(max=old)[:, None]
    pixels = torch.arange(old)
    weights = kernel((pixels + 0.5 - centers[:, None]) / stretch)
    weights = torch.where((pixels >= first) & (pixels < last), weights, 0.0)
    return weights / weights.sum(1, keepdim=True)
