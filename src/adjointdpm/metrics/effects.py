"""Effects on whole images, differentiable: as targets, and as metrics of how far an image is from one.

    sepia, night, inverted     x -> A x + b, a map of colours
    blurred                    a Gaussian of 1.5 pixels
    pixel art                  squares of 4 pixels, rounded softly to 6 levels
    line drawing               outlines on paper of the border's colour

Nothing is clamped or rounded: r(u) = u - sin(2 pi u) / (2 pi) is flat at whole numbers only, and tanh saturates
where a clamp would end the gradient. `effect("kornia:filters.sobel")` takes any function of kornia that needs
an image alone.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from .._types import InputError
from .base import Images, Paired
from .import_by_name import attribute
from .pixels import PixelDistance, border

__all__ = ["EFFECTS", "EffectDistance", "effect", "gaussian"]

SEPIA = ((0.393, 0.769, 0.189), (0.349, 0.686, 0.168), (0.272, 0.534, 0.131))
MOONLIGHT, SKY = (0.30, 0.36, 0.62), (0.01, 0.02, 0.07)


def sepia(images: Images) -> Images:
    """Mix four fifths of sepia brown with one fifth of the image's own colours.

    Args:
        images: (batch, 3, height, width), in [0, 1].

    Returns:
        images of the same shape.
    """
    return torch.lerp(images, torch.einsum("ij,bjhw->bihw", images.new_tensor(SEPIA), images), 0.8)


def night(images: Images) -> Images:
    """Make images dim and blue: x * tint + sky, per channel.

    Args:
        images: (batch, 3, height, width), in [0, 1].

    Returns:
        images of the same shape.
    """
    tint, sky = (images.new_tensor(c).view(3, 1, 1) for c in (MOONLIGHT, SKY))
    return images * tint + sky


def inverted(images: Images) -> Images:
    """Return the negative, 1 - x.

    Args:
        images: (batch, 3, height, width), in [0, 1].

    Returns:
        images of the same shape.
    """
    return 1 - images


def blurred(images: Images) -> Images:
    """Blur by a Gaussian with a standard deviation of 1.5 pixels.

    Args:
        images: (batch, 3, height, width), in [0, 1].

    Returns:
        images of the same shape.
    """
    return gaussian(images, 1.5)


def pixel_art(images: Images) -> Images:
    """Average squares of 4 x 4 pixels, and round each channel softly to 6 levels.

    Args:
        images: (batch, 3, height, width), in [0, 1]; height and width are multiples of 4.

    Returns:
        images of the same shape.

    Raises:
        InputError: the height or the width is no multiple of 4.
    """
    if images.shape[-1] % 4 or images.shape[-2] % 4:
        raise InputError(
            f"pixel art needs sides that are multiples of 4, but has {tuple(images.shape[-2:])}"
        )
    levels = 5 * functional.avg_pool2d(images, 4)
    for _ in range(2):
        levels = levels - torch.sin(2 * math.pi * levels) / (2 * math.pi)
    return (levels / 5).repeat_interleave(4, 2).repeat_interleave(4, 3)


def line_drawing(images: Images) -> Images:
    """Draw outlines on paper of the border's mean colour: light ones on dark paper, dark ones on light paper.

    Args:
        images: (batch, 3, height, width), in [0, 1].

    Returns:
        images of the same shape.
    """
    paper = border(images).mean(2)[:, :, None, None]
    padded = functional.pad(gaussian(images, 1.0), (1, 1, 1, 1), mode="replicate")
    across = padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]
    down = padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]
    # The root of a sum of squares has no derivative at 0; a thousandth is less than an 8-bit level.
    edge = ((across.square() + down.square()).sum(1, keepdim=True) + 1e-6).sqrt() - 1e-3
    light = (paper.mean(1, keepdim=True) < 0.45).to(images)
    return torch.lerp(paper.expand_as(images), (0.08 + 0.87 * light).expand_as(images), (2.5 * edge).tanh())


def gaussian(images: Tensor, deviation: float) -> Tensor:
    """Blur by a Gaussian of 9 x 9 pixels; the border's pixels are repeated outside.

    Args:
        images: (batch, 3, height, width).
        deviation: standard deviation in pixels, above 0 and at most about 2, where 9 pixels still hold it.

    Returns:
        images of the same shape.
    """
    offsets = torch.arange(-4, 5, dtype=images.dtype, device=images.device)
    weights = torch.softmax(-0.5 * (offsets / deviation).square(), 0).repeat(3, 1)
    padded = functional.pad(images, (4, 4, 4, 4), mode="replicate")
    across = functional.conv2d(padded, weights[:, None, None, :], groups=3)
    return functional.conv2d(across, weights[:, None, :, None], groups=3)


EFFECTS: dict[str, Callable[[Tensor], Tensor]] = {
    "sepia": sepia,
    "pixel art": pixel_art,
    "line drawing": line_drawing,
    "blurred": blurred,
    "night": night,
    "inverted": inverted,
}


def effect(name: str) -> Callable[[Tensor], Tensor]:
    """Return an effect by its name.

    Args:
        name: a key of `EFFECTS`, or "kornia:module.function" for a function of kornia that needs an image alone.

    Returns:
        a differentiable function from images (batch, 3, height, width) to images.

    Raises:
        InputError: there is no effect of that name, or kornia is not installed.

    Examples:
        >>> import torch
        >>> import adjointdpm as adp
        >>> adp.metrics.effect("inverted")(torch.full((1, 3, 2, 2), 0.25))[0, 0].tolist()
        [[0.75, 0.75], [0.75, 0.75]]
    """
    if name in EFFECTS:
        return EFFECTS[name]
    if name.startswith("kornia:"):
        module, _, function = name.removeprefix("kornia:").rpartition(".")
        return attribute(f"kornia.{module}".rstrip("."), function, "pip install 'adjointdpm[effects]'")
    raise InputError(
        f"there is no effect {name!r}; there are {', '.join(EFFECTS)}, and any function of kornia of one image, "
        "such as kornia:filters.sobel"
    )


@dataclass(frozen=True, eq=False)
class EffectDistance(Paired):
    """Mean squared distance of an image from the effect applied to the image of comparison.

        mean over pixels and channels of (x - e(y))^2          y the image of the same noise, before

    Args:
        effect: a function e from images to images of the same shape, such as `effect("sepia")`.

    Raises:
        InputError: when called directly; in `beside`, if the effect changes the shape.

    Examples:
        >>> import torch
        >>> import adjointdpm as adp
        >>> before = torch.zeros(1, 3, 8, 8)
        >>> metric = adp.metrics.EffectDistance(adp.metrics.effect("inverted")).beside(before)
        >>> metric(torch.full((1, 3, 8, 8), 0.5)).tolist()
        [0.25]
    """

    effect: Callable[[Tensor], Tensor]

    def beside(self, others: Images) -> PixelDistance:
        """Return the distance from the effect on the given images.

        Args:
            others: (batch, 3, height, width), in [0, 1].

        Returns:
            the metric of a batch of the same size.

        Raises:
            InputError: the effect changes the shape.
        """
        target = self.effect(others)
        if target.shape != others.shape:
            raise InputError(
                f"the effect makes {tuple(target.shape)} of {tuple(others.shape)}; keep the shape"
            )
        return PixelDistance(target)
