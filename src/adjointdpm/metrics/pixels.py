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
    """Mean squared difference from a target image.

        mean over pixels and channels of (x - y)^2          in units of the squared range, 0 to 1

    It compares place by place, so that a shift of the subject counts as much as another subject. Use
    `ContentDistance` or `ClipDistance` to compare what images show.

    Args:
        target: the target y, (batch, channels, height, width) or (channels, height, width), in [0, 1].

    Raises:
        InputError: when called, if the images have another shape.

    Examples:
        >>> import torch
        >>> import adjointdpm as adp
        >>> adp.metrics.PixelDistance(torch.zeros(3, 8, 8))(torch.full((1, 3, 8, 8), 0.5)).tolist()
        [0.25]
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
    """Mean squared difference from the image that a task compares with: that of the same noise, before.

    In a sum it keeps the result close to the image before the optimization: `style + 0.5 * Pixels()`. It is
    `PixelDistance` to that image.

    Raises:
        InputError: when called directly.

    Examples:
        >>> import torch
        >>> import adjointdpm as adp
        >>> metric = adp.metrics.Pixels().beside(torch.zeros(1, 3, 8, 8))
        >>> metric(torch.full((1, 3, 8, 8), 0.5)).tolist()
        [0.25]
    """

    def beside(self, others: AnyImages) -> PixelDistance:
        """Return the distance from the given images.

        Args:
            others: (batch, channels, height, width), in [0, 1].

        Returns:
            the metric of a batch of the same size.
        """
        return PixelDistance(others)


@dataclass(frozen=True)
class Chroma(Weighable):
    """The colourfulness of an image: the mean squared distance of its pixels from their own grey.

        mean over pixels and channels of (c - Y)^2,     Y = 0.2126 R + 0.7152 G + 0.0722 B (Rec. 709)

    Lower it for a grey image; its negative makes colours stronger.

    Raises:
        InputError: when called, if the images do not have 3 channels.

    Examples:
        >>> import torch
        >>> import adjointdpm as adp
        >>> adp.metrics.Chroma()(torch.full((1, 3, 8, 8), 0.5)).tolist()
        [0.0]
    """

    def __call__(self, images: AnyImages) -> Values:
        _needs_color(images)
        weights = torch.tensor(LUMINANCE, dtype=images.dtype, device=images.device)
        grey = (images * weights.view(3, 1, 1)).sum(1, keepdim=True)
        return ((images - grey) ** 2).flatten(1).mean(1)


@dataclass(frozen=True)
class BackgroundColour(Weighable):
    """Mean squared distance of an image's border from a colour.

        mean over the border's pixels and channels of (x - colour)^2

    Use it where the subject stands in the middle. A subject that touches the border counts as background.

    Args:
        colour: red, green and blue, each in [0, 1].
        width: width of the border in pixels, at least 1.

    Raises:
        InputError: a value is out of range; when called, if the images do not have 3 channels.

    Examples:
        >>> import torch
        >>> import adjointdpm as adp
        >>> metric = adp.metrics.BackgroundColour((0.0, 0.0, 1.0))
        >>> image = torch.zeros(1, 3, 16, 16)
        >>> round(metric(image).item(), 4)
        0.3333
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
    """Return the pixels of an image's border, each once.

    Args:
        images: (batch, 3, height, width).
        width: width of the border in pixels, at least 1.

    Returns:
        (batch, 3, pixels); all pixels where the border covers the image.
    """
    h, w = images.shape[-2:]
    inside = torch.zeros(h, w, dtype=torch.bool, device=images.device)
    inside[width : max(width, h - width), width : max(width, w - width)] = True
    return images[:, :, ~inside]
