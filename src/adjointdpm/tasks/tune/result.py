"""What a tuning found, as files and as a page: beside no tuning and beside the usual alternative."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...files.atomic_write import write_file
from ...files.html_report import ImageTable, Page
from ...files.images import as_8_bit, png, sheet
from ..evaluation import Rate

__all__ = ["TuneResult", "Tuned", "write_tuning"]


@dataclass(frozen=True, eq=False)
class Tuned:
    """Held-out images of one way of tuning.

    images     (images, 3, height, width), not clamped
    distances  mean of each measure
    judged     how often the judge sees the concept, on 8 bits; None without a judge
    losses     of the training
    """

    images: Tensor
    distances: dict[str, float]
    judged: Rate | None
    losses: list[float]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "distances": self.distances,
            "judged": self.judged and self.judged.as_dict(),
            "losses": self.losses,
        }


@dataclass(frozen=True, eq=False)
class TuneResult:
    """What a tuning found; the files lie in `folder`, the weights in `artefact`.

    ways     "untuned", "metric", and "denoising" where it was asked for
    costs    bytes saved for backward and denoiser calls an image, and seconds
    """

    folder: Path
    artefact: Path
    ways: dict[str, Tuned]
    costs: dict[str, Any]

    def reduction(self, measure: str, way: str = "metric") -> float:
        """1 - distance after / before, on held-out prompts and noise; NaN where it was 0, as content's is."""
        before = self.ways["untuned"].distances[measure]
        return 1 - self.ways[way].distances[measure] / before if before else float("nan")


def write_tuning(
    result: TuneResult, about: Mapping[str, Any], captions: list[str], repeat: str, image: Tensor | None
) -> None:
    """result.json, the images in one file, and the page, into the result's folder."""
    folder, ways = result.folder, result.ways
    ways_json = {name: each.as_dict() for name, each in ways.items()}
    found = {"settings": dict(about), "ways": ways_json, "costs": result.costs}
    write_file(folder / "result.json", json.dumps(found, indent=1, default=str).encode())
    shown = slice(0, 8)
    images = torch.cat([as_8_bit(each.images[shown]) for each in ways.values()])
    write_file(folder / "pictures.png", png(sheet(images, len(captions[shown]))))
    page = Page("adjointdpm tune: weights towards a metric")
    page.text(
        f"{result.costs['weights']:,} weights, trained for {about['max_train_steps']} steps on {len(about['prompts'])} "
        "prompts with fresh noise a step. Below are prompts and noise that were not trained on."
    )
    names = list(ways["untuned"].distances)
    page.table(
        ["", "", *names, *(f"{name}: less by" for name in names), "concept seen by the judge"],
        [
            [
                way,
                "",
                *(f"{each.distances[name]:.4f}" for name in names),
                *(_percent(result.reduction(name, way)) for name in names),
                "no judge" if each.judged is None else str(each.judged),
            ]
            for way, each in ways.items()
        ],
    )
    if image is not None:
        page.images(ImageTable("reference", as_8_bit(image[None]), ["the one image"]))
    page.images(
        *(ImageTable(way, as_8_bit(each.images[shown]), captions[shown]) for way, each in ways.items())
    )
    for way, each in ways.items():
        if each.losses:
            page.curve(each.losses, "step", f"loss ({way})")
    page.heading("What was differentiated, and how to repeat it")
    page.text(
        f"The whole sampling: {result.costs['calls_an_image']} denoiser calls for an image's gradient, "
        f"{result.costs['bytes_saved']} bytes saved for the backward pass. {result.costs['seconds']:.0f} seconds."
    )
    page.code(repeat or "adjointdpm.tasks.tune(...) with the settings in result.json")
    page.write(folder / "index.html")


def _percent(share: float) -> str:
    return "" if math.isnan(share) else f"{100 * share:.0f} %"
