"""Renders that the bundled model was not trained on, with their captions: those that the tests read, without a font."""

import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from protocol import about, article
from torch import Tensor

__all__ = ["psnr", "renders"]

_DATA = Path(__file__).parents[1] / "tests" / "data"


def renders(number: int) -> tuple[Tensor, list[str], dict[str, Any]]:
    """Return images (number, 3, 64, 64) in [0, 1], their captions, and the record of their labels."""
    labels = json.loads((_DATA / "renders.json").read_text())
    with Image.open(_DATA / "renders.png") as image:
        width, height = image.size
        pixels = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8)
    page, tile = pixels.view(height, width, 3).permute(2, 0, 1).float() / 255, labels["tile"]
    tiles = page.unfold(1, tile, tile).unfold(2, tile, tile).flatten(1, 2).transpose(0, 1)
    captions = [
        caption(*each) for each in zip(labels["concepts"], labels["colours"], labels["styles"], strict=True)
    ]
    return tiles[:number], captions[:number], labels


def caption(concept: str, color: str, style: str) -> str:
    """Return the caption that a render was made with."""
    phrase = about["phrases"][concept]
    if style != "plain":
        bare = phrase.removeprefix("an ").removeprefix("a ")
        phrase = f"{style} {bare}" if bare == phrase else article(f"{style} {bare}")
    return f"{phrase} on {article(color)} background"


def psnr(images: Tensor, reference: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio of each image in dB."""
    error = (images.clamp(0, 1) - reference).square().flatten(1).mean(1)
    return -10 * error.clamp(min=1e-12).log10()
