"""Pictures as files: clamped and rounded once, when they are saved."""

import io
import os
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from ._types import InputError

__all__ = ["as_8_bit", "output_folder", "png", "read_picture", "sheet"]


def as_8_bit(images: Float[Tensor, "*batch 3 h w"]) -> UInt8[Tensor, "*batch 3 h w"]:
    """What a PNG file of these pictures holds."""
    return (images.detach().clamp(0, 1) * 255).round().to("cpu", torch.uint8)


def png(image: UInt8[Tensor, "3 h w"]) -> bytes:
    """A PNG file's content."""
    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(buffer, "PNG")
    return buffer.getvalue()


def read_picture(content: bytes) -> Float[Tensor, "3 h w"]:
    """A PNG's picture in [0, 1]."""
    image = Image.open(io.BytesIO(content)).convert("RGB")
    flat = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return flat.view(image.height, image.width, 3).permute(2, 0, 1).float() / 255


def sheet(
    images: UInt8[Tensor, "batch 3 h w"], columns: int, gap: int = 2
) -> UInt8[Tensor, "3 height width"]:
    """Pictures side by side, row by row, on white."""
    _, _, h, w = images.shape
    rows = -(-len(images) // columns)
    page = torch.full((3, rows * (h + gap) - gap, columns * (w + gap) - gap), 255, dtype=torch.uint8)
    for i, image in enumerate(images):
        top, left = i // columns * (h + gap), i % columns * (w + gap)
        page[:, top : top + h, left : left + w] = image
    return page


def output_folder(path: str | Path) -> Path:
    """A folder for results, made if need be, and known to be writable before the work starts.

    Raises:
        InputError: it cannot be made or written to; the message says what the system said.
    """
    folder = Path(path)
    probe = folder / f".writable-{os.getpid()}"  # several processes of one run may ask at once
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            probe.write_bytes(bytes(4096))  # a full disk still takes a file of no bytes
        finally:
            probe.unlink(missing_ok=True)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        says = getattr(error, "strerror", None) or str(error)
        raise InputError(f"cannot write to the output folder {folder}: {says}") from error
    return folder
