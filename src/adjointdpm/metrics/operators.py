"""Measurements of images: what an inverse problem knows of an image in place of the image itself.

    mask             y = m x                                        m of 0 and 1
    blur, box        y = k * x                                      a Gaussian, or a square's mean
    downsample       y = the mean of each square of so many pixels
    gray             y = Rec. 709 luminance
    jpeg             y = IDCT(q r(DCT(x) / q)),  r(u) = u - sin(2 pi u) / (2 pi)      blocks of 8, smooth rounding
    phase            y = |FFT(x)|, of the image padded with zeros

All are differentiable functions of (batch, channels, height, width). Any function of images is an operator, too.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from .._types import InputError, in_range
from .pixels import LUMINANCE

__all__ = [
    "OPERATORS",
    "BoxBlur",
    "Downsample",
    "GaussianBlur",
    "Grayscale",
    "Mask",
    "PhaseRetrieval",
    "SmoothJPEG",
    "operator_of",
]

Operator = Callable[[Tensor], Tensor]
Batch = Float[Tensor, "batch channels height width"]
Measurement = Float[Tensor, "batch out_channels out_height out_width"]

# The table of luminance of annex K of the JPEG standard, for all channels.
_TABLE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)


@dataclass(frozen=True)
class Mask:
    """The image outside of a square in its middle, which is hidden: inpainting.

        y = m x,     m = 0 in the middle

    Args:
        share: the side of the hidden square as a share of the image's, above 0 and below 1.
    """

    share: float = 0.5

    def __post_init__(self) -> None:
        in_range("share", self.share, 0, 0.99, open_low=True)

    def __call__(self, images: Batch) -> Batch:
        height, width = images.shape[2:]
        mask = torch.ones(height, width, dtype=images.dtype, device=images.device)
        top, left = (round(n * (1 - self.share) / 2) for n in (height, width))
        mask[top : height - top, left : width - left] = 0
        return images * mask


@dataclass(frozen=True)
class BoxBlur:
    """The mean of a square around each pixel.

    Args:
        size: the side of the square in pixels, odd, at least 1.
    """

    size: int = 5

    def __post_init__(self) -> None:
        in_range("size", self.size, 1, 999)
        if self.size % 2 == 0:
            raise InputError(f"size, the side of the square, must be odd, but is {self.size}")

    def __call__(self, images: Batch) -> Batch:
        half = self.size // 2
        padded = functional.pad(images, (half, half, half, half), mode="replicate")
        return functional.avg_pool2d(padded, self.size, 1)


@dataclass(frozen=True)
class GaussianBlur:
    """A Gaussian blur, cut off at three standard deviations; the border's pixels are repeated outside.

    Args:
        sigma: the standard deviation in pixels, above 0.
    """

    sigma: float = 2.0

    def __post_init__(self) -> None:
        in_range("sigma", self.sigma, 0, 100, open_low=True)

    def __call__(self, images: Batch) -> Batch:
        half, channels = math.ceil(3 * self.sigma), images.shape[1]
        offsets = torch.arange(-half, half + 1, dtype=images.dtype, device=images.device)
        weights = torch.softmax(-0.5 * (offsets / self.sigma).square(), 0).repeat(channels, 1)
        padded = functional.pad(images, (half, half, half, half), mode="replicate")
        across = functional.conv2d(padded, weights[:, None, None, :], groups=channels)
        return functional.conv2d(across, weights[:, None, :, None], groups=channels)


@dataclass(frozen=True)
class Downsample:
    """The mean of each square of so many pixels: super-resolution.

    Args:
        factor: the side of a square in pixels, at least 1; it divides height and width.
    """

    factor: int = 4

    def __post_init__(self) -> None:
        in_range("factor", self.factor, 1, 999)

    def __call__(self, images: Batch) -> Measurement:
        if images.shape[2] % self.factor or images.shape[3] % self.factor:
            raise InputError(
                f"images of {images.shape[2]} x {images.shape[3]} pixels are not cut into squares of {self.factor}; "
                "take a factor that divides both"
            )
        return functional.avg_pool2d(images, self.factor)


@dataclass(frozen=True)
class Grayscale:
    """The luminance by Rec. 709: colorization."""

    def __call__(self, images: Batch) -> Measurement:
        return (images * images.new_tensor(LUMINANCE).view(3, 1, 1)).sum(1, keepdim=True)


@dataclass(frozen=True)
class SmoothJPEG:
    """The coefficients that JPEG keeps, with a rounding that has a derivative; each channel as luminance.

    Args:
        quality: 1 to 99, as in libjpeg.
    """

    quality: int = 10

    def __post_init__(self) -> None:
        in_range("quality", self.quality, 1, 99)

    def __call__(self, images: Batch) -> Batch:
        height, width = images.shape[2:]
        if height % 8 or width % 8:
            raise InputError(
                f"JPEG's blocks are of 8 x 8 pixels, which {height} x {width} is no multiple of"
            )
        scale = 50 / self.quality if self.quality < 50 else 2 - self.quality / 50
        table = (images.new_tensor(_TABLE) * scale).clamp(min=1) / 255
        basis = _cosines(images)
        blocks = images.unflatten(3, (-1, 8)).unflatten(2, (-1, 8)).transpose(3, 4) - 0.5
        u = basis @ blocks @ basis.T / table
        kept = (u - torch.sin(2 * math.pi * u) / (2 * math.pi)) * table
        return (basis.T @ kept @ basis + 0.5).transpose(3, 4).flatten(4, 5).flatten(2, 3)


@dataclass(frozen=True)
class PhaseRetrieval:
    """The absolute values of the Fourier transform of an image padded with zeros; its phases are not measured.

    Args:
        oversampling: the padded side as a multiple of the image's, at least 1.
    """

    oversampling: float = 2.0

    def __post_init__(self) -> None:
        in_range("oversampling", self.oversampling, 1, 8)

    def __call__(self, images: Batch) -> Measurement:
        sides = [round(self.oversampling * n) for n in images.shape[2:]]
        found = torch.fft.fft2(images, s=sides, norm="ortho")
        return (found.real.square() + found.imag.square() + 1e-12).sqrt()


OPERATORS: dict[str, type[Any]] = {
    "mask": Mask,
    "box": BoxBlur,
    "blur": GaussianBlur,
    "downsample": Downsample,
    "gray": Grayscale,
    "jpeg": SmoothJPEG,
    "phase": PhaseRetrieval,
}
"""The operators by the names of the command line."""


def operator_of(text: str) -> Operator:
    """Read an operator from a text such as "blur:sigma=2", "downsample:factor=4" or "gray".

    Args:
        text: the name and, after a colon, settings by name, separated by commas.

    Returns:
        the operator.

    Raises:
        InputError: an unknown operator, an unknown setting or one that is given twice, or a value out of range.

    Examples:
        >>> operator_of("blur:sigma=2")
        GaussianBlur(sigma=2.0)
    """
    name, _, rest = text.partition(":")
    if name not in OPERATORS:
        raise InputError(f"no operator is called {name!r}; there are {', '.join(OPERATORS)}")
    kind = OPERATORS[name]
    known = {each.name: type(each.default) for each in fields(kind)}
    given: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        key, _, value = part.partition("=")
        if key not in known:
            raise InputError(
                f"{name} has no setting {key!r}; it has {', '.join(known) or 'none'}: {name}:key=value"
            )
        if key in given:
            raise InputError(f"{name}:{key} is given twice in {text!r}; give it once")
        try:
            given[key] = known[key](value)
        except ValueError as error:
            number = "a whole number" if known[key] is int else "a number"
            raise InputError(f"{name}:{key} must be {number}, but is {value!r}") from error
    return kind(**given)


def _cosines(like: Tensor) -> Tensor:
    """Return the orthonormal basis of the discrete cosine transform of 8 values, (frequency, place)."""
    place = torch.arange(8, dtype=like.dtype, device=like.device)
    basis = torch.cos(math.pi * (2 * place + 1) * place[:, None] / 16) / 2
    return torch.cat([basis[:1] / math.sqrt(2), basis[1:]])
