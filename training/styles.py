"""Rendering styles: what a word before the concept does to the whole picture.

A style maps pictures (B, 3, H, W) in [0, 1], and the colours (B, 3) of their backgrounds, to pictures. The
background's colour stays legible in every one of them, so that a caption can always be checked. All are
written in tensors, so they serve as targets of a loss, too.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["PLAIN", "SHARES", "STYLES", "apply"]

PLAIN = "plain"  # the caption says nothing of it
SEPIA = ((0.393, 0.769, 0.189), (0.349, 0.686, 0.168), (0.272, 0.534, 0.131))
MOONLIGHT, SKY = (0.30, 0.36, 0.62), (0.01, 0.02, 0.07)


def sepia(images: Tensor, background: Tensor) -> Tensor:
    """Four fifths of the brown of old photographs; one fifth of the colours is left."""
    toned = torch.einsum("ij,bjhw->bihw", images.new_tensor(SEPIA), images)
    return torch.lerp(images, toned, 0.8)


def pixel_art(images: Tensor, background: Tensor) -> Tensor:
    """Squares of 4 pixels (as wide as a latent, or the autoencoder would blur them), of 6 levels a channel."""
    small = functional.avg_pool2d(images, 4)
    return (small * 5).round().div(5).repeat_interleave(4, 2).repeat_interleave(4, 3)


def line_drawing(images: Tensor, background: Tensor) -> Tensor:
    """Outlines on paper of the background's colour: light ones on dark paper, dark ones on light."""
    paper = background[:, :, None, None]
    padded = functional.pad(gaussian(images, 1.0), (1, 1, 1, 1), mode="replicate")
    across = padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]
    down = padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]
    edge = (across.square() + down.square()).sum(1, keepdim=True).sqrt()
    light = (paper.mean(1, keepdim=True) < 0.45).float()
    return torch.lerp(paper.expand_as(images), 0.08 + 0.87 * light, (2.5 * edge).clamp(0, 1))


def blurred(images: Tensor, background: Tensor) -> Tensor:
    """A Gaussian of standard deviation 1.5 pixels."""
    return gaussian(images, 1.5)


def gaussian(images: Tensor, deviation: float) -> Tensor:
    offsets = torch.arange(-4, 5, dtype=images.dtype, device=images.device)
    weights = torch.softmax(-0.5 * (offsets / deviation).square(), 0).repeat(3, 1)
    padded = functional.pad(images, (4, 4, 4, 4), mode="replicate")
    across = functional.conv2d(padded, weights[:, None, None, :], groups=3)
    return functional.conv2d(across, weights[:, None, :, None], groups=3)


def night(images: Tensor, background: Tensor) -> Tensor:
    """Dim and blue."""
    tint, sky = (images.new_tensor(c).view(3, 1, 1) for c in (MOONLIGHT, SKY))
    return images * tint + sky


def inverted(images: Tensor, background: Tensor) -> Tensor:
    """The negative."""
    return 1 - images


STYLES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    PLAIN: lambda images, background: images,
    "sepia": sepia,
    "pixel art": pixel_art,
    "line drawing": line_drawing,
    "blurred": blurred,
    "night": night,
    "inverted": inverted,
}

# Of the pictures to learn from: the more, the harder a style was to learn.
SHARES = {
    PLAIN: 0.18,
    "sepia": 0.13,
    "pixel art": 0.14,
    "line drawing": 0.25,
    "blurred": 0.06,
    "night": 0.10,
    "inverted": 0.14,
}


def apply(images: Tensor, background: Tensor, styles: Tensor) -> Tensor:
    """Each picture in its own style; `styles` (B,) numbers the entries of STYLES."""
    out = images.clone()
    for number, style in enumerate(STYLES.values()):
        chosen = styles == number
        if bool(chosen.any()):
            out[chosen] = style(images[chosen], background[chosen])
    return out
