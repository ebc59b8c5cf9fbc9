"""Videos as files: animated WebP without a loss, whose frames come back to the bit.

    frame f is shown from f d to (f + 1) d,     d = round(1000 / rate) milliseconds

WebP stores equal frames in a row once, with the sum of their times; reading repeats them. A film in which nothing moves
has no times, and is read as one frame.
"""

import io

import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageSequence
from torch import Tensor

from .images import read_frame

__all__ = ["film", "read_film", "strip"]

LONGEST = 256  # pixels of the longer side of a strip, which is shown at 128


def film(video: UInt8[Tensor, "frames c h w"], rate: float | int) -> bytes:
    """Encode a video as an animated WebP file, lossless and repeated forever.

    Args:
        video: (frames, channels, height, width), uint8, with 1 or 3 channels.
        rate: frames in a second.

    Returns:
        the file's content.

    Examples:
        >>> import torch
        >>> from adjointdpm.files.films import film, read_film
        >>> video = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8)
        >>> torch.equal((255 * read_film(film(video, 8), 8)).round().to(torch.uint8), video)
        True
    """
    return _webp([_opened(frame) for frame in video], rate, lossless=True, method=1)


def strip(video: UInt8[Tensor, "frames c h w"], rate: float | int) -> bytes:
    """Encode a video as an animated WebP file to look at: lossless where it is small, else smaller and with a loss.

    Args:
        video: (frames, channels, height, width), uint8, with 1 or 3 channels.
        rate: frames in a second.

    Returns:
        the file's content; its sides are at most 256 pixels.
    """
    if max(video.shape[-2:]) <= LONGEST:
        return film(video, rate)
    images = [_opened(frame) for frame in video]
    for each in images:
        each.thumbnail((LONGEST, LONGEST))
    return _webp(images, rate, quality=85)


def read_film(content: bytes, rate: float | int) -> Float[Tensor, "frames c h w"]:
    """Decode a file that `film` made.

    Args:
        content: the file's content.
        rate: frames in a second, as it was encoded.

    Returns:
        (frames, 3, height, width), in [0, 1], float32.
    """
    frames: list[Tensor] = []
    with Image.open(io.BytesIO(content)) as images:
        for image in ImageSequence.Iterator(images):
            image.load()
            times = round(image.info.get("duration", 0) / _duration(rate))
            frames += [read_frame(image.convert("RGB"))] * max(1, times)
    return torch.stack(frames)


def _webp(images: list[Image.Image], rate: float | int, **options: bool | int) -> bytes:
    first, *rest = images
    buffer = io.BytesIO()
    first.save(
        buffer, "WEBP", save_all=True, append_images=rest, duration=_duration(rate), loop=0, **options
    )
    return buffer.getvalue()


def _duration(rate: float | int) -> int:
    return max(1, round(1000 / rate))


def _opened(frame: Tensor) -> Image.Image:
    content = frame[0] if len(frame) == 1 else frame.permute(1, 2, 0)
    return Image.fromarray(content.contiguous().numpy()).convert("RGB")
