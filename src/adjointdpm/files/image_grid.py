"""Named rows of small images with captions, as one image: for a notebook, a slide or a report."""

import math
from collections.abc import Mapping, Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .._types import InputError
from .images import as_8_bit

__all__ = ["image_grid"]

_GAP, _LINE, _SIZE = 8, 15, 12  # between images, from line to line, and of the letters, in pixels


def image_grid(
    rows: Mapping[str, Tensor],
    captions: Mapping[str, Sequence[str]] | Sequence[str] | None = None,
    *,
    width: int = 128,
) -> Image.Image:
    """Arrange images in named rows, with a caption under each, and return them as one image of Pillow.

    Use it as the last expression of a notebook's cell, which displays it. Images are clamped to [0, 1] and enlarged by
    a whole factor without smoothing, so that what is seen are the pixels that a classifier reads.

    Args:
        rows: images (batch, 3, height, width), or (batch, 1, height, width) for gray, in [0, 1] or uint8, by the name
            of their row; one size for all. A row may be shorter than others.
        captions: one caption for each image of a row, by the row's name, or one for each column, which is then written
            once, under the last row. No captions if None.
        width: the least width of an image in the grid, in pixels, from 16 on.

    Returns:
        the grid, RGB; `grid.save("grid.png")` writes it to a file.

    Raises:
        InputError: there is no image, images differ in size, captions are of an unknown row or of another number than
            the images, or the width is below 16.

    Examples:
        >>> import torch
        >>> import adjointdpm as adp
        >>> images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        >>> grid = adp.image_grid({"before": images, "after": 1 - images}, ["a cat", "a car"])
        >>> grid.mode, grid.width > 256
        ('RGB', True)
    """
    _check(rows, width)
    last = list(rows)[-1]
    texts = dict(captions) if isinstance(captions, Mapping) else {last: captions or ()}
    for name, row in texts.items():
        if name not in rows or len(row) not in (0, len(rows[name])):
            known = ", ".join(f"{each!r} of {len(images)}" for each, images in rows.items())
            raise InputError(
                f"captions of the row {name!r} are {len(row)}, but the rows are {known} images"
            )
    font = ImageFont.load_default(_SIZE)
    *_, h, w = rows[last].shape
    scale = max(1, -(-width // w))
    h, w = scale * h, scale * w
    widest = math.ceil(max(font.getlength(word) for name in rows for word in name.split() or [""]))
    margin = widest + (2 * _GAP if widest else _GAP)
    names = {name: _lines(name, font, widest) for name in rows}
    below = {name: [_lines(text, font, w) for text in texts.get(name, ())] for name in rows}
    heights = [h + _LINE * max(map(len, below[name]), default=0) + _GAP for name in rows]
    columns = max(map(len, rows.values()))
    grid = Image.new("RGB", (margin + columns * (w + _GAP), _GAP + sum(heights)), "white")
    draw = ImageDraw.Draw(grid)
    top = _GAP
    for (name, images), height in zip(rows.items(), heights, strict=True):
        draw.multiline_text(
            (_GAP, top + h / 2), "\n".join(names[name]), "black", font, anchor="lm", spacing=3
        )
        for i, image in enumerate(images if images.dtype == torch.uint8 else as_8_bit(images)):
            left = margin + i * (w + _GAP)
            pixels = image.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy()
            grid.paste(Image.fromarray(pixels).resize((w, h), Image.Resampling.NEAREST), (left, top))
            for number, line in enumerate(below[name][i] if below[name] else ()):
                draw.text((left + w / 2, top + h + _LINE * number), line, "black", font, anchor="ma")
        top += height
    return grid


def _check(rows: Mapping[str, Tensor], width: int) -> None:
    """Raise unless every row holds images of one size.

    Raises:
        InputError: it does not, or the width is below 16.
    """
    shapes = {name: tuple(images.shape) for name, images in rows.items()}
    if (
        not shapes
        or any(len(s) != 4 or not s[0] or s[1] not in (1, 3) for s in shapes.values())
        or len({shape[2:] for shape in shapes.values()}) > 1
    ):
        raise InputError(
            f"rows are images (batch, 3 or 1, height, width) of one size by name, but their shapes are {shapes}"
        )
    if width < 16:
        raise InputError(f"the width of an image is at least 16 pixels, but is {width}")


def _lines(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """Return a text in lines that are not wider than a width, where its words allow it."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
