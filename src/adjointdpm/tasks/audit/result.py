"""What an audit found."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..evaluation import Rate

__all__ = ["AttackOutcome", "AuditResult", "Dropped"]


@dataclass(frozen=True, eq=False)
class AttackOutcome:
    """Images of one noise a start, and what is said about their files.

    noise      (starts, *shape)
    images     (starts, channels, height, width), the files' content, 8 bits
    says       the audited classifier's label of each
    judged     the judge's label of each, or None without a judge
    fooled     (starts,) whether the classifier is wrong (or says the target)
    shows      (starts,) whether the judge sees the thing that was asked for
    margins    (starts,) logit of the true label less the best other one
    distances  (starts,) from the start, in the ball's unit
    calls      denoiser calls an image that finding them took, forward and backward; None if they were not counted
    """

    noise: Tensor
    images: Tensor
    says: list[str]
    judged: list[str] | None
    fooled: Tensor
    shows: Tensor | None
    margins: Tensor
    distances: Tensor
    calls: int | None = None

    @property
    def success(self) -> Rate:
        """How often the classifier is fooled."""
        return Rate.of_mask(self.fooled)

    @property
    def kept(self) -> Rate | None:
        """How often it is fooled while the judge still sees the thing; None without a judge."""
        return None if self.shows is None else Rate.of_mask(self.fooled & self.shows)

    def as_dict(self) -> dict[str, Any]:
        """Return its rates, for JSON."""
        kept, shown = self.kept, None if self.shows is None else Rate.of_mask(self.shows)
        return {
            "success": self.success.as_dict(),
            "success_and_kept": kept and kept.as_dict(),
            "judged_right": shown and shown.as_dict(),
            "largest_distance": float(self.distances.max()),
            "calls": self.calls,
        }


@dataclass(frozen=True)
class Dropped:
    """Starts of a prompt that an audit does without.

    prompt, label  as they were given
    starts         how many are missing
    why            what the classifier took one of its images for, or that its label is the target itself
    """

    prompt: str
    label: str
    starts: int
    why: str

    def __str__(self) -> str:
        return f"{self.starts} of {self.prompt!r} ({self.label}: {self.why})"


@dataclass(frozen=True, eq=False)
class AuditResult:
    """An audit's findings; the files lie in `folder`.

    prompts, labels   of each start
    start      (starts, *shape), the noise it began with
    tried      noises tried to find them
    dropped    starts that were asked for and not found
    before, after     the originals, and what the attack found
    smallest   the smallest change found by bisection on the way to each success; what was found elsewhere
    curve      what was found in balls of each radius
    controls   what random noise and SPSA found with as many denoiser calls
    transfer   by classifier: adversarial images that it also misclassifies, among those whose original it
               classified correctly
    losses     mean loss of each iterate
    costs      denoiser calls a step and a sampling, bytes saved for backward (one image), seconds
    """

    folder: Path
    prompts: list[str]
    labels: list[str]
    start: Tensor
    tried: int
    dropped: list[Dropped]
    before: AttackOutcome
    after: AttackOutcome
    smallest: AttackOutcome
    curve: dict[float, AttackOutcome]
    controls: dict[str, AttackOutcome]
    transfer: dict[str, tuple[int, int]]
    losses: list[float]
    costs: dict[str, Any]

    @property
    def success(self) -> Rate:
        """How often the classifier is fooled, on the saved images."""
        return self.after.success

    @property
    def kept(self) -> Rate | None:
        """... while the judge still sees the thing."""
        return self.after.kept

    @property
    def classes(self) -> dict[str, tuple[Rate, Rate | None]]:
        """Both rates by label."""
        out = {}
        for label in sorted(set(self.labels)):
            mine = torch.tensor([each == label for each in self.labels])
            shows = self.after.shows
            fooled = self.after.fooled[mine]
            kept = None if shows is None else Rate.of_mask(fooled & shows[mine])
            out[label] = (Rate.of_mask(fooled), kept)
        return out

    def worst(self, number: int, kept: bool) -> list[int]:
        """Return the starts with the lowest margins, among those with or without a preserved label."""
        shows = self.after.shows
        mask = self.after.fooled if shows is None else self.after.fooled & (shows == kept)
        rows: list[int] = mask.nonzero()[:, 0].tolist()
        return sorted(rows, key=lambda i: float(self.after.margins[i]))[:number]

    def rows(self) -> list[dict[str, Any]]:
        """Return what is known of each image; None of the smallest change where there is no success."""
        found: list[dict[str, Any]] = []
        for i in range(len(self.labels)):
            fooled = bool(self.after.fooled[i])
            row: dict[str, Any] = {
                "prompt": self.prompts[i],
                "label": self.labels[i],
                "says": self.after.says[i],
                "judged": None if self.after.judged is None else self.after.judged[i],
                "judged_before": None if self.before.judged is None else self.before.judged[i],
                "fooled": fooled,
                "margin": float(self.after.margins[i]),
                "distance": float(self.after.distances[i]),
                "pixel_difference": self._levels(self.after, i),
                "smallest_distance": float(self.smallest.distances[i]) if fooled else None,
                "smallest_pixel_difference": self._levels(self.smallest, i) if fooled else None,
            }
            found.append(row)
        return found

    def _levels(self, found: AttackOutcome, i: int) -> int:
        """Return the largest difference of a pixel from the original, of 255 levels."""
        return int((found.images[i].int() - self.before.images[i].int()).abs().max())

    def as_dict(self) -> dict[str, Any]:
        """Return what result.json says of it."""
        return {
            "starts": len(self.labels),
            "tried": self.tried,
            "dropped": [asdict(each) for each in self.dropped],
            "before": self.before.as_dict(),
            "after": self.after.as_dict(),
            "curve": {str(radius): found.as_dict() for radius, found in self.curve.items()},
            "controls": {name: found.as_dict() for name, found in self.controls.items()},
            "transfer": {name: Rate(*pair).as_dict() for name, pair in self.transfer.items()},
            "classes": {
                label: {"success": a.as_dict(), "success_and_kept": b and b.as_dict()}
                for label, (a, b) in self.classes.items()
            },
            "losses": self.losses,
            "costs": self.costs,
            "images": self.rows(),
        }
