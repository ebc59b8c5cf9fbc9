"""Images as files: clamped and rounded once when they are saved; read as a person sees them, or refused.

    seen = a c + (1 - a) 1         c the color and a the opacity of a pixel, on white

A file that is read may be anybody's. It is turned upright (by its EXIF orientation), 16-bit grey keeps its levels, and
what is transparent lies on white, so that the hidden color of a transparent pixel does not matter.
"""

import io
import os
import stat
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps
from torch import Tensor

from .._types import InputError

__all__ = ["as_8_bit", "encoded", "image_file", "output_folder", "png", "read_frame", "read_image", "sheet"]

# What needs no other program to be read, as EPS does.
_FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM", "JPEG2000")
_MOST_BYTES = 2**29
_MOST_PIXELS = 2**26  # 8192 x 8192; as float32 RGB 0.8 GB


def as_8_bit(images: Float[Tensor, "*batch c h w"]) -> UInt8[Tensor, "*batch c h w"]:
    """Convert images to 8 bits: clamp to [0, 1], multiply by 255 and round.

    Args:
        images: (*batch, channels, height, width), in [0, 1].

    Returns:
        (*batch, channels, height, width), uint8, on the CPU, without a graph.

    Examples:
        >>> import torch
        >>> from adjointdpm.files.images import as_8_bit
        >>> as_8_bit(torch.tensor([-0.5, 0.5, 2.0]).view(3, 1, 1)).flatten().tolist()
        [0, 128, 255]
    """
    return (images.detach().clamp(0, 1) * 255).round().to("cpu", torch.uint8)


def encoded(image: UInt8[Tensor, "c h w"], suffix: str) -> bytes:
    """Encode an image as a file: grey for one channel, RGB for three.

    Args:
        image: (channels, height, width), uint8, with 1 or 3 channels.
        suffix: png (lossless), jpg (of quality 95) or webp (lossless).

    Returns:
        the file's content.
    """
    buffer = io.BytesIO()
    content = image[0] if len(image) == 1 else image.permute(1, 2, 0)
    options: dict[str, Any] = {"jpg": {"quality": 95}, "webp": {"lossless": True}}.get(suffix, {})
    kind = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP"}[suffix]
    Image.fromarray(content.contiguous().numpy()).save(buffer, kind, **options)
    return buffer.getvalue()


def png(image: UInt8[Tensor, "c h w"]) -> bytes:
    """Encode an image as a PNG file; see `encoded`."""
    return encoded(image, "png")


def read_image(content: bytes) -> Float[Tensor, "c h w"]:
    """Decode a PNG file that `png` made.

    Args:
        content: the file's content.

    Returns:
        (channels, height, width), in [0, 1], float32, with 1 or 3 channels.

    Examples:
        >>> import torch
        >>> from adjointdpm.files.images import png, read_image
        >>> read_image(png(torch.full((3, 2, 2), 255, dtype=torch.uint8))).unique().tolist()
        [1.0]
    """
    image = Image.open(io.BytesIO(content))
    return read_frame(image if image.mode == "L" else image.convert("RGB"))


def image_file(path: str | Path, most_pixels: int = _MOST_PIXELS) -> Float[Tensor, "3 h w"]:
    """Read an image file of any origin as a person sees it: upright, and on white where it is transparent.

    Args:
        path: a file of PNG, JPEG, WebP, AVIF, GIF, BMP, TIFF, PPM or JPEG 2000, of at most 512 MiB.
        most_pixels: the most pixels that are read; 67 million by default.

    Returns:
        (3, height, width), in [0, 1], float32.

    Raises:
        InputError: there is no such file, it is too large, no image, cut off or animated, or its numbers have no known
            range.
        MemoryError: the memory does not suffice for the image.
    """
    try:
        about = Path(path).stat()
        if not stat.S_ISREG(about.st_mode):
            raise InputError(f"cannot read the image {path}: it is no file, but a folder, pipe or device")
        if about.st_size > _MOST_BYTES:
            raise InputError(
                f"cannot read the image {path}: it has {about.st_size / 2**20:.0f} MiB, and at most "
                f"{_MOST_BYTES >> 20} are read; save it smaller"
            )
        with warnings.catch_warnings():
            # Pillow warns of sizes that are refused below, and of damaged metadata.
            warnings.simplefilter("ignore")
            Image.init()
            with Image.open(path, formats=[name for name in _FORMATS if name in Image.OPEN]) as image:
                return _seen(image, path, most_pixels)
    except (InputError, MemoryError):
        raise
    except Image.UnidentifiedImageError as error:
        raise InputError(
            f"cannot read the image {path}: it is no image of the formats {', '.join(_FORMATS)}"
        ) from error
    except Exception as error:  # Pillow raises what its decoders meet
        about_it = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"cannot read the image {path}: {about_it}") from error


def _seen(image: Image.Image, path: str | Path, most_pixels: int) -> Tensor:
    width, height = image.size
    if width * height > most_pixels:
        raise InputError(
            f"cannot read the image {path}: it is {width} x {height}, and at most {most_pixels / 1e6:.0f} million "
            "pixels are read; save it smaller"
        )
    frames = (
        1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    )  # MPO: a photograph and its preview
    if frames > 1:
        raise InputError(
            f"cannot read the image {path}: it has {frames} frames; save the one that you want as a PNG"
        )
    kind, image = image.format, ImageOps.exif_transpose(image)
    if image.mode in ("F", "I") or image.mode.startswith("I;"):
        return _deep(image, kind, path).expand(3, -1, -1)
    if image.has_transparency_data:
        rgba = read_frame(image.convert("RGBA"))
        return rgba[:3] * rgba[3:] + (1 - rgba[3:])
    return read_frame(image.convert("RGB"))


def _deep(image: Image.Image, kind: str | None, path: str | Path) -> Tensor:
    """Return grey levels of more than 8 bits, (1, height, width).

    Raises:
        InputError: the levels have no known range, lie outside it, or are transparent.
    """
    if "transparency" in image.info:
        raise InputError(
            f"cannot read the image {path}: it is 16-bit grey and transparent; save it without transparency"
        )
    if image.mode == "F":
        most = 1.0
    elif image.mode == "I" and kind not in ("PNG", "PPM"):
        raise InputError(
            f"cannot read the image {path}: 32-bit integers say nothing of what is white; save it with 8 or 16 bits"
        )
    else:
        most = 65535.0
    levels = torch.from_numpy(np.asarray(image).astype("float64"))[None] / most
    if not bool(((levels >= 0) & (levels <= 1)).all()):
        raise InputError(
            f"cannot read the image {path}: its numbers must lie between 0 and {most:g}, but do from "
            f"{float(levels.min()) * most:g} to {float(levels.max()) * most:g}; save it with 8 or 16 bits"
        )
    return levels.float()


def read_frame(image: Any) -> Tensor:
    """Return the pixels of an open image of Pillow, (channels, height, width), in [0, 1]."""
    flat = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return flat.view(image.height, image.width, -1).permute(2, 0, 1).float() / 255


def sheet(
    images: UInt8[Tensor, "batch c h w"], columns: int, gap: int = 2
) -> UInt8[Tensor, "c height width"]:
    """Arrange images row by row on a white page.

    Args:
        images: (batch, channels, height, width), uint8.
        columns: number of images in a row, at least 1.
        gap: distance between images in pixels.

    Returns:
        the page, (channels, height, width), uint8.

    Examples:
        >>> import torch
        >>> from adjointdpm.files.images import sheet
        >>> sheet(torch.zeros(3, 1, 8, 8, dtype=torch.uint8), columns=2).shape
        torch.Size([1, 18, 18])
    """
    _, c, h, w = images.shape
    rows = -(-len(images) // columns)
    page = torch.full((c, rows * (h + gap) - gap, columns * (w + gap) - gap), 255, dtype=torch.uint8)
    for i, image in enumerate(images):
        top, left = i // columns * (h + gap), i % columns * (w + gap)
        page[:, top : top + h, left : left + w] = image
    return page


def output_folder(path: str | Path) -> Path:
    """Make a folder for results if it does not exist, and check that it can be written to.

    Call it before long work, so that a full disk or a missing permission is an error at once.

    Args:
        path: the folder.

    Returns:
        the folder.

    Raises:
        InputError: the folder cannot be made or written to; the message contains the system's reason.
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
