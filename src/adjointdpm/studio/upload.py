"""Images that a person uploads: read by the library's own reader, within bounds, and kept small.

The file that came is deleted; what is kept is a PNG of the size that metrics look at.
"""

from contextlib import suppress
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

from ..files.atomic_write import write_file
from ..files.images import as_8_bit, image_file, output_folder, png

__all__ = ["MOST_BYTES", "MOST_PIXELS", "kept_image"]

MOST_BYTES = 8 * 2**20
"""The most bytes of an uploaded file."""

MOST_PIXELS = 2**24
"""The most pixels of an uploaded image: 4096 x 4096."""

_LONGEST = 512


def kept_image(upload: Path, path: Path) -> UInt8[Tensor, "3 h w"]:
    """Read an uploaded image, delete the upload, and keep the image.

    Args:
        upload: the file that came.
        path: where the image is kept as a PNG, at most 512 pixels high and wide.

    Returns:
        the image as it is kept.

    Raises:
        InputError: it is no image that can be read, or too large.
    """
    try:
        image = image_file(upload, MOST_PIXELS)
    finally:
        with suppress(OSError):
            upload.unlink()
    largest = max(image.shape[1:])
    if largest > _LONGEST:
        size = [max(1, round(each * _LONGEST / largest)) for each in image.shape[1:]]
        image = torch.nn.functional.interpolate(
            image[None], size=size, mode="bilinear", antialias=True, align_corners=False
        )[0]
    kept = as_8_bit(image)
    output_folder(path.parent)
    write_file(path, png(kept))
    return kept
