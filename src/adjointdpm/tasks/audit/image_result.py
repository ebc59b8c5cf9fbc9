"""What an audit of given images found."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...attacks import Verdict
from ..evaluation import Rate

__all__ = ["VERDICTS", "ImageAuditResult"]

VERDICTS = ("single", "worst", "majority")


@dataclass(frozen=True, eq=False)
class ImageAuditResult:
    """An audit's findings; the files lie in `folder`.

    files         the name of each image
    labels        (images,), the classes' numbers
    names         of the classes
    images        (images, 3, height, width), 8 bits, as given
    right         (images,), whether most draws read the given image right; the others are not attacked
    before        what the classifier says of the given images
    found         (attacked, 3, height, width), 8 bits, as they lie in their files
    after         what it says of them, on fresh draws
    random        what it says of the best random points, or None
    distances     (attacked,), of the files' content, in the ball's unit
    smallest      (attacked, 3, height, width), 8 bits, the smallest change found by bisection on the way to each
                  success of the vote; what was found elsewhere
    smallest_distances  (attacked,), of it, likewise
    randomized    whether the classifier draws noise
    zero_gradients  share of the attack's gradients that were exactly zero
    losses        the mean loss of each step
    costs         gradients, denoiser calls, seconds
    """

    folder: Path
    files: list[str]
    labels: Tensor
    names: list[str]
    images: Tensor
    right: Tensor
    before: Verdict
    found: Tensor
    after: Verdict
    random: Verdict | None
    distances: Tensor
    smallest: Tensor
    smallest_distances: Tensor
    randomized: bool
    zero_gradients: float
    losses: list[float]
    costs: dict[str, Any]

    @property
    def clean(self) -> dict[str, Rate]:
        """How many given images the classifier reads right, by verdict."""
        return {name: Rate.of_mask(~getattr(self.before, name)) for name in VERDICTS}

    @property
    def robust(self) -> dict[str, Rate]:
        """How many images it still reads right after the attack, by verdict, of all images."""
        return self.left(self.after)

    def left(self, after: Verdict) -> dict[str, Rate]:
        """Return how many of all images are read right, where points stand in place of those that were attacked."""
        return {name: Rate(int((~getattr(after, name)).sum()), len(self.labels)) for name in VERDICTS}

    def misled(self, after: Verdict) -> dict[str, Rate]:
        """Return how many of the attacked images are misled, by verdict."""
        return {name: Rate.of_mask(getattr(after, name)) for name in VERDICTS}

    @property
    def classes(self) -> dict[str, tuple[Rate, Rate]]:
        """Clean and robust accuracy of the vote, by label."""
        holds = self.right.clone()
        holds[self.right] = ~self.after.majority
        out = {}
        for label in sorted(set(self.labels.tolist())):
            mine = self.labels == label
            out[self.names[label]] = (Rate.of_mask(self.right[mine]), Rate.of_mask(holds[mine]))
        return out

    def rows(self) -> list[dict[str, Any]]:
        """Return what is known of each image; None where it was not attacked."""
        place = torch.full_like(self.labels, -1)
        place[self.right] = torch.arange(int(self.right.sum()), device=place.device)
        misled = set(self.after.majority.nonzero()[:, 0].tolist())
        out: list[dict[str, Any]] = []
        for i, at in enumerate(place.tolist()):
            row: dict[str, Any] = {
                "file": self.files[i],
                "label": self.names[int(self.labels[i])],
                "clean_says": self.names[int(self.before.voted[i])],
            }
            row |= {
                "says": None if at < 0 else self.names[int(self.after.voted[at])],
                "share_misled": None if at < 0 else float(self.after.each[:, at].double().mean()),
                "margin": None if at < 0 else float(self.after.margins[at]),
                "distance": None if at < 0 else float(self.distances[at]),
                "smallest_distance": None if at not in misled else float(self.smallest_distances[at]),
                "smallest_pixel_difference": None if at not in misled else self._levels(at),
            }
            out.append(row)
        return out

    def _levels(self, at: int) -> int:
        """Return the largest difference of a pixel between an attacked image and the smallest change of it."""
        before = self.images[self.right][at].int()
        return int((self.smallest[at].int() - before).abs().max())

    @property
    def median_smallest(self) -> float | None:
        """The median of the smallest distances of the successes of the vote; None without a success."""
        mine = self.smallest_distances[self.after.majority.cpu()]
        return float(mine.median()) if len(mine) else None

    def as_dict(self) -> dict[str, Any]:
        """Return what result.json says of it."""

        def plain(rates: dict[str, Rate]) -> dict[str, Any]:
            return {name: rate.as_dict() for name, rate in rates.items()}

        return {
            "clean": plain(self.clean),
            "robust": plain(self.robust),
            "random": None if self.random is None else plain(self.left(self.random)),
            "misled": plain(self.misled(self.after)),
            "random_misled": None if self.random is None else plain(self.misled(self.random)),
            "randomized": self.randomized,
            "zero_gradients": self.zero_gradients,
            "largest_distance": float(self.distances.max()),
            "median_smallest_distance": self.median_smallest,
            "classes": {
                name: {"clean": a.as_dict(), "robust": b.as_dict()} for name, (a, b) in self.classes.items()
            },
            "losses": self.losses,
            "costs": self.costs,
            "images": self.rows(),
        }
