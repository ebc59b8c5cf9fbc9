"""Variants of images, which still show what the images show.

    x'(p) = gain * (x(A p + b(p)) - 1/2) + 1/2 + offset

A p is a turn by up to 15 degrees, a change of scale by up to 20 %, a shift by up to an eighth of the side, and half of
the time a mirror; b bends the image smoothly by up to 5 % of the side; gain and offset, up to 20 and 10 %, tint each
colour channel. What a generator's noise can do to an image is of this kind: it moves, bends and tints wide areas.

Not for labels that a mirror or a tint would change, such as letters, arrows or colours.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["drawn", "variants"]

_GRID = 5  # points a side of the field that bends
_DRAWS = 12 + 2 * _GRID**2


def drawn(seeds: Sequence[int]) -> Tensor:
    """Return parameters of random variants, (n, 62), uniform in [-1, 1]; a row depends on its own seed only."""
    rows = [torch.rand(_DRAWS, generator=torch.Generator().manual_seed(each)) for each in seeds]
    return torch.stack(rows) * 2 - 1


def variants(images: Tensor, draws: Tensor) -> Tensor:
    """Return one variant of each image, differentiable in both.

    Args:
        images: (n, 1 or 3, height, width) in [0, 1].
        draws: (n, 62) in [-1, 1].
    """
    turn, scale, stretch = math.radians(15) * draws[:, 0], 1 + 0.2 * draws[:, 1], 1 + 0.1 * draws[:, 2]
    side = torch.where(draws[:, 3] < 0, -1.0, 1.0).to(images)
    across = torch.stack([scale * turn.cos() * side, -scale * turn.sin(), draws[:, 4] / 4], 1)
    down = torch.stack([scale * turn.sin() * side, scale * turn.cos() * stretch, draws[:, 5] / 4], 1)
    straight = functional.affine_grid(
        torch.stack([across, down], 1), list(images.shape), align_corners=False
    )
    bend = functional.interpolate(
        0.1 * draws[:, 12:].view(-1, 2, _GRID, _GRID),
        size=images.shape[2:],
        mode="bicubic",
        align_corners=False,
    )
    moved = functional.grid_sample(
        images, straight + bend.permute(0, 2, 3, 1), padding_mode="border", align_corners=False
    )
    c = images.shape[1]
    gain, offset = 1 + 0.2 * draws[:, 6 : 6 + c, None, None], 0.1 * draws[:, 9 : 9 + c, None, None]
    return (gain * (moved - 0.5) + 0.5 + offset).clamp(0, 1)
