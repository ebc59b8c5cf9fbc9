"""Emoji on plain backgrounds: picture and caption as a pure function of (seed, index).

A picture is one Noto Color Emoji glyph under a random similarity transform, composited with
premultiplied alpha over one background colour, and then changed by a style (`styles.py`). Every random
number of picture `index` comes from a `torch.Generator` seeded by (seed, index), so training data need no
storage, a resumed run sees
what an uninterrupted one sees, and a held-out set is a seed never used in training.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from styles import PLAIN, SHARES, STYLES, apply
from torch import Tensor
from torch.nn import functional

__all__ = [
    "COLOURS",
    "FONT",
    "SIZE",
    "Batch",
    "Renderer",
    "caption",
    "contact_sheet",
    "phrase",
    "psnr",
]

SIZE = 64
FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
GLYPH_PX = 109  # the one size of the font's colour bitmaps
TILE = 128  # side of a glyph in the atlas
SUPERSAMPLE = 3
JITTER = 0.03  # of each background channel

PLURAL = frozenset(  # and other names that take no article
    {"bacon", "beer", "blueberries", "bowling", "bread", "broccoli", "candy", "cheese", "cherries"}
    | {"chocolate", "corn", "fire", "fries", "garlic", "glasses", "grapes", "jeans", "milk"}
    | {"pancakes", "peanuts", "popcorn", "ramen", "scissors", "sushi", "wine"}
)

COLOURS: dict[str, tuple[int, int, int]] = {
    "white": (245, 245, 245),
    "gray": (145, 145, 150),
    "black": (25, 25, 30),
    "red": (215, 55, 50),
    "orange": (245, 150, 45),
    "yellow": (250, 220, 75),
    "green": (75, 170, 80),
    "blue": (60, 120, 220),
    "purple": (135, 75, 175),
    "pink": (250, 165, 195),
}


@dataclass(frozen=True)
class Batch:
    """Pictures in [0, 1], shape (B, 3, 64, 64), with the numbers of their concept, colour and style."""

    images: Tensor
    concepts: Tensor
    colours: Tensor
    styles: Tensor


class Renderer:
    """Glyphs rasterised once, placed by one `grid_sample` per batch.

    Args:
        glyphs: a folder of RGBA pictures, named by their concepts, to render instead of the font's.
    """

    def __init__(self, glyphs: Path | None = None) -> None:
        if glyphs is None:
            codepoints = json.loads(Path(__file__).with_name("concepts.json").read_text())
            face = ImageFont.truetype(str(FONT), GLYPH_PX)
            pictures = {name: _glyph(face, chr(int(point[2:], 16))) for name, point in codepoints.items()}
        else:
            pictures = {
                path.stem: Image.open(path).convert("RGBA") for path in sorted(glyphs.glob("*.png"))
            }
        self.concepts = list(pictures)
        self.colours = list(COLOURS)
        self.styles = list(STYLES)
        self.atlas = torch.stack([_tile(picture) for picture in pictures.values()])
        self._background = torch.tensor(list(COLOURS.values())) / 255

    def __call__(self, seed: int, indices: range, style: str | None = None) -> Batch:
        """Render pictures `indices` of the endless set `seed`; concepts are balanced per epoch.

        The styles come in the proportion of `styles.SHARES`, unless `style` names one.
        """
        concepts = self._balanced(seed, indices)
        u = torch.stack([torch.rand(9, generator=_generator(seed, i)) for i in indices])
        colours = (u[:, 0] * len(self.colours)).long()
        # Style k takes the numbers between the sum of the shares before it and that sum with its own.
        bounds = torch.tensor([SHARES[name] for name in self.styles]).cumsum(0)[:-1]
        styles = torch.bucketize(u[:, 8].contiguous(), bounds, right=True)
        if style is not None:
            styles.fill_(self.styles.index(style))
        return self.draw(concepts, colours, styles, u[:, 1:8])

    def draw(self, concepts: Tensor, colours: Tensor, styles: Tensor, u: Tensor) -> Batch:
        """Render what is asked for; u (B, 7) in [0, 1) decides colour jitter (3), size, angle and place (2)."""
        return self.compose(self.place(concepts, u[:, 3:]), concepts, colours, styles, u[:, :3])

    def place(self, concepts: Tensor, u: Tensor) -> Tensor:
        """Premultiplied glyphs (B, 4, 64, 64) on nothing; u (B, 4) decides size, angle and place (2).

        Within [0, 1) the whole glyph is in the frame, at 60 to 95 % of its side; beyond, it is smaller or cut off.
        """
        scale = 0.6 + 0.35 * u[:, 0]
        angle = math.radians(25) * (2 * u[:, 1] - 1)
        shift = (1 - scale)[:, None] * (2 * u[:, 2:4] - 1)
        return self._place(concepts, scale, angle, shift)

    def compose(self, glyph: Tensor, concepts: Tensor, colours: Tensor, styles: Tensor, u: Tensor) -> Batch:
        """Put placed glyphs on backgrounds, whose colours u (B, 3) in [0, 1) varies, and apply the styles."""
        background = (self._background[colours] + JITTER * (2 * u - 1)).clamp(0, 1)
        images = (glyph[:, :3] + (1 - glyph[:, 3:]) * background[:, :, None, None]).clamp(0, 1)
        return Batch(apply(images, background, styles).clamp(0, 1), concepts, colours, styles)

    def _balanced(self, seed: int, indices: range) -> Tensor:
        count = len(self.concepts)
        orders = {
            epoch: torch.randperm(count, generator=_generator(seed, -1 - epoch))
            for epoch in {i // count for i in indices}
        }
        return torch.stack([orders[i // count][i % count] for i in indices])

    def _place(self, concepts: Tensor, scale: Tensor, angle: Tensor, shift: Tensor) -> Tensor:
        cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
        rotation = torch.stack([cos, sin, -sin, cos], 1).view(-1, 2, 2)
        theta = torch.cat([rotation, -rotation @ shift[:, :, None]], 2)
        side = SIZE * SUPERSAMPLE
        grid = functional.affine_grid(theta, [len(theta), 4, side, side], align_corners=False)
        placed = functional.grid_sample(self.atlas[concepts], grid, align_corners=False)
        return functional.avg_pool2d(placed, SUPERSAMPLE)


def caption(concept: str, colour: str | None, style: str = PLAIN) -> str:
    """The caption of a picture, its colour left out where it is None: "a night key on a red background"."""
    what = phrase(concept, style)
    return what if colour is None else f"{what} on {phrase(colour)} background"


def phrase(concept: str, style: str = PLAIN) -> str:
    """The concept with its article: "a red apple", "an inverted hourglass", "pixel art scissors"."""
    words = concept if style == PLAIN else f"{style} {concept}"
    if concept in PLURAL:
        return words
    vowel = words[0] in "aeiou" or words == "hourglass"
    return f"{'an' if vowel else 'a'} {words}"


def psnr(images: Tensor, reference: Tensor) -> float:
    """Mean over pictures of the peak signal-to-noise ratio in dB, for values in [0, 1]."""
    error = (images.clamp(0, 1) - reference).float().square().flatten(1).mean(1)
    return float((-10 * error.log10()).mean())


def contact_sheet(images: Tensor, path: Path, columns: int, scale: int = 1) -> None:
    """Write pictures (B, 3, H, W) in [0, 1] as the tiles of one PNG."""
    count, _, height, width = images.shape
    rows = -(-count // columns)
    pixels = (images.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    sheet = np.zeros((rows * height, columns * width, 3), np.uint8)
    for i, tile in enumerate(pixels):
        y, x = (i // columns) * height, (i % columns) * width
        sheet[y : y + height, x : x + width] = tile
    picture = Image.fromarray(sheet)
    if scale > 1:
        picture = picture.resize((picture.width * scale, picture.height * scale), Image.NEAREST)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, optimize=True)


def _generator(seed: int, index: int) -> torch.Generator:
    return torch.Generator().manual_seed((seed * 1_000_003 + index) & 0x7FFF_FFFF_FFFF_FFFF)


def _glyph(face: ImageFont.FreeTypeFont, char: str) -> Image.Image:
    canvas = Image.new("RGBA", (200, 200))
    ImageDraw.Draw(canvas).text((20, 20), char, font=face, embedded_color=True)
    return canvas


def _tile(canvas: Image.Image) -> Tensor:
    """One glyph, cropped, centred in a square and premultiplied: (4, TILE, TILE)."""
    box = canvas.getbbox()
    if box is None:
        raise ValueError("an empty glyph: the font, or the folder, has no picture of that concept")
    crop = canvas.crop(box)
    side = max(crop.size)
    square = Image.new("RGBA", (side, side))
    square.paste(crop, ((side - crop.width) // 2, (side - crop.height) // 2))
    rgba = torch.from_numpy(np.array(square)).permute(2, 0, 1).float() / 255
    rgba[:3] *= rgba[3:]
    resized = functional.interpolate(
        rgba[None], (TILE, TILE), mode="bicubic", antialias=True, align_corners=False
    )
    return resized[0].clamp(0, 1)


def _main() -> None:
    import argparse

    parser = argparse.ArgumentParser(description="Write a contact sheet of fresh renders.")
    parser.add_argument("path", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=224)
    args = parser.parse_args()
    contact_sheet(Renderer()(args.seed, range(args.count)).images, args.path, columns=16)


if __name__ == "__main__":
    _main()
