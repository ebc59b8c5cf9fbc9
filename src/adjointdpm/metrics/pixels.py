"""Metrics of the pixels themselves: distance to an image, colourfulness, the colour of the background."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .._types import InputError
from .base import AnyImages, Images, Paired, Values, Weighable

__all__ = ["BackgroundColour", "Chroma", "PixelDistance", "Pixels", "border"]

# Rec. 709 weights of red, green and blue in luminance.
LUMINANCE = (0.2126, 0.7152, 0.0722)


@dataclass(frozen=True, eq=False)
class PixelDistance(Weighable):
    """Mean squared difference to a target image, in units of the full range.

    Args:
        target: (batch, channels, height, width) or (channels, height, width), in [0, 1].

    Raises:
        InputError: when called, if the images have another shape.
    """

    target: Tensor

    def __call__(self, images: AnyImages) -> Values:
        if self.target.shape[-3:] != images.shape[1:]:
            raise InputError(
                f"the target is {tuple(self.target.shape[-3:])}, but the images are {tuple(images.shape[1:])}, of "
                "(channels, height, width); give one of the same shape"
            )
        return ((images - self.target) ** 2).flatten(1).mean(1)


@dataclass(frozen=True)
class Pixels(Paired):
    """Mean squared difference to the image that a task compares with."""

    def beside(self, others: AnyImages) -> PixelDistance:
        return PixelDistance(others)


@dataclass(frozen=True)
class Chroma(Weighable):
    """How colourful an image is: the mean squared distance of its pixels from their own grey.

    mean over pixels and channels of (c - Y)^2,   Y the luminance (Rec. 709)
    """

    def __call__(self, images: AnyImages) -> Values:
        _needs_color(images)
        weights = torch.tensor(LUMINANCE, dtype=images.dtype, device=images.device)
        grey = (images * weights.view(3, 1, 1)).sum(1, keepdim=True)
        return ((images - grey) ** 2).flatten(1).mean(1)


@dataclass(frozen=True)
class BackgroundColour(Weighable):
    """Mean squared distance of an image's border from a colour.

    Use it where the subject stands in the middle; what touches the border is taken for background.

    Args:
        colour: red, green and blue in [0, 1].
        width: of the border in pixels, at least 1.

    Raises:
        InputError: another number of channels, or a value out of range.
    """

    colour: tuple[float | int, float | int, float | int]
    width: int = 4

    def __post_init__(self) -> None:
        if len(self.colour) != 3 or not all(0 <= c <= 1 for c in self.colour) or self.width < 1:
            raise InputError(
                "a background is three numbers in [0, 1] and a border of at least 1 pixel, but is "
                f"{self.colour} and {self.width}"
            )

    def __call__(self, images: AnyImages) -> Values:
        _needs_color(images)
        colour = torch.tensor(self.colour, dtype=images.dtype, device=images.device).view(1, 3, 1)
        return ((border(images, self.width) - colour) ** 2).flatten(1).mean(1)


def _needs_color(images: Tensor) -> None:
    if images.shape[1] != 3:
        raise InputError(f"a metric of color needs images of 3 channels, but these have {images.shape[1]}")


def border(images: Images, width: int = 4) -> Tensor:
    """The pixels of an image's border, each once: (batch, 3, pixels); all of them if it is that small."""
    h, w = images.shape[-2:]
    inside = torch.zeros(h, w, dtype=torch.bool, device=images.device)
    inside[width : max(width, h - width), width : max(width, w - width)] = True
    return images[:, :, ~inside]
