"""The row of an audit's page that has the differences of pixels between pairs of images."""

import torch
from torch import Tensor

from ...files.html_report import ImageTable

__all__ = ["difference_table"]


def difference_table(before: Tensor, after: Tensor, name: str = "difference, scaled") -> ImageTable:
    """Return |after - before|, the largest of all as white, with the largest of each in its caption.

    Args:
        before: (images, 3, height, width), 8 bits.
        after: likewise.
        name: of the row.
    """
    difference = (after.int() - before.int()).abs().float()
    scaled = (255 * difference / difference.max().clamp(min=1)).to(torch.uint8)
    return ImageTable(name, scaled, [f"at most {int(d.max())} levels" for d in difference])
