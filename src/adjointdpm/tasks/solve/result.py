"""What the solvers of inverse problems made of each measured image, and of all of them."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..methods import MethodResult, MethodsResult

__all__ = ["PLAIN", "SolveResult", "SolvedImage"]

PLAIN = "no measurement"
"""The name of the sampling that no solver moves."""


@dataclass(frozen=True, eq=False)
class SolvedImage:
    """What each solver made of one measurement.

    file     the image's name
    prompt   what it shows
    methods  by name; the first is "no measurement", and each has an image of every noise
    """

    file: str
    prompt: str
    methods: dict[str, MethodResult]

    @property
    def solvers(self) -> list[str]:
        """The names of the solvers."""
        return [name for name in self.methods if name != PLAIN]

    def distance(self, name: str) -> float:
        """Return the lowest metric of a method's images."""
        return float(self.methods[name].values["metric"].min())

    def nearest(self, name: str) -> int:
        """Return the noise from which a method's image comes nearest to the measurement."""
        return int(self.methods[name].values["metric"].argmin())

    @cached_property
    def best(self) -> str:
        """The solver whose image comes nearest to the measurement."""
        return min(self.solvers, key=self.distance)

    @property
    def image(self) -> Tensor:
        """The image that comes nearest to the measurement, (3, height, width), not clamped."""
        return self.methods[self.best].images[self.nearest(self.best)]

    def as_dict(self) -> dict[str, Any]:
        """Return what result.json says of it."""
        return {
            "file": self.file,
            "prompt": self.prompt,
            "best": self.best,
            "methods": {name: each.as_dict() for name, each in self.methods.items()},
        }


@dataclass(frozen=True, eq=False)
class SolveResult(MethodsResult):
    """What each solver made; `artefact` is the image of each measurement that comes nearest to it, or their folder.

    methods  by name, over all measurements: the images of the first one's noises, then of the second one's, ...
    images   what was made of each measurement
    """

    images: list[SolvedImage]

    @classmethod
    def of(cls, folder: Path, images: list[SolvedImage], costs: dict[str, Any]) -> "SolveResult":
        """Return the result of some measurements, whose methods have the same names."""
        artefact = folder / ("solved" if len(images) > 1 else "solved.png")
        methods = {name: _together([each.methods[name] for each in images]) for name in images[0].methods}
        return cls(folder, artefact, methods, costs, images)

    @property
    def best(self) -> str:
        """The solver that comes nearest to the measurements, in the mean of the lowest metric of each."""
        return min(
            self.images[0].solvers, key=lambda name: sum(each.distance(name) for each in self.images)
        )

    @property
    def files(self) -> list[Path]:
        """Where the image of each measurement lies that comes nearest to it."""
        if len(self.images) == 1:
            return [self.artefact]
        return [self.artefact / f"{number:04d}.png" for number in range(len(self.images))]

    def as_dict(self) -> dict[str, Any]:
        """Return what result.json says of it."""
        entries = [
            each.as_dict() | {"saved": str(path.relative_to(self.folder))}
            for each, path in zip(self.images, self.files, strict=True)
        ]
        return super().as_dict() | {"images": entries}


def _together(parts: list[MethodResult]) -> MethodResult:
    """Return what one method made of all measurements; its losses are those of each measurement alone."""
    first = parts[0]
    if len(parts) == 1:
        return first
    return MethodResult(
        torch.cat([part.images for part in parts]),
        {name: torch.cat([part.values[name] for part in parts]) for name in first.values},
        None,
        calls=max(part.calls or 0 for part in parts),
        tries=len(first.images),
    )
