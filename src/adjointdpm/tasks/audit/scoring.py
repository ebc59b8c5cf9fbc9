"""The labels that the audited classifier, the judge and others give saved images."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..._types import Cond
from ...attacks.norm_ball import Ball
from ...files.atomic_write import write_file
from ...files.images import as_8_bit, output_folder, png
from ...metrics.classifier_losses import margin_of
from ...metrics.image_classifier import Labelled
from ...optimization.distributed import Processes
from ...samplers.base import Sampler
from ..evaluation import predict
from ..sampling import sampled, saved
from .result import AttackOutcome

__all__ = ["Evaluator"]


@dataclass(frozen=True, eq=False)
class Evaluator:
    """Samples noise, saves the images, and lets all classifiers label them.

    Args:
        sampler: makes the images.
        classifier: the audited one.
        judge: the independent one, if any.
        target: the label that the classifier should give all images; None for any wrong one.
        folder: where images are saved.
        batch: images at once.
        quiet: whether no progress is shown.
    """

    sampler: Sampler
    classifier: Labelled
    judge: Labelled | None
    target: str | None
    folder: Path
    batch: int
    quiet: bool = False

    def found(
        self, name: str | None, noise: Tensor, start: Tensor, cond: Cond, labels: Tensor, ball: Ball
    ) -> AttackOutcome:
        """Return the labels of the images of some noise, as the images lie in their files."""
        made = sampled(self.sampler, noise, cond, self.batch, what="images judged", quiet=self.quiet)
        files, images = as_8_bit(made), saved(made)
        if name is not None and Processes.here().first:
            where = output_folder(self.folder / name)
            for i, content in enumerate(files):
                write_file(where / f"{i:04d}.png", png(content))
        logits = predict(self.classifier, images)
        says = logits.argmax(1)
        fooled = says != labels
        if self.target is not None:
            fooled = says == self.classifier.index(self.target)
        names = [self.classifier.labels[int(i)] for i in labels]
        judged = None
        if self.judge is not None:
            judged = [self.judge.labels[int(i)] for i in predict(self.judge, images).argmax(1)]
        shows = (
            None if judged is None else torch.tensor([a == b for a, b in zip(judged, names, strict=True)])
        )
        return AttackOutcome(
            noise=noise.detach().clone(),
            images=files,
            says=[self.classifier.labels[int(i)] for i in says],
            judged=judged,
            fooled=fooled.cpu(),
            shows=shows,
            margins=margin_of(logits, labels).cpu(),
            distances=ball.distance(noise, start).cpu(),
        )

    def transferred(self, other: Labelled, before: AttackOutcome, after: AttackOutcome) -> tuple[int, int]:
        """Return how many adversarial images `other` misclassifies, of those whose original it classified right."""
        clean, spoilt = (
            [other.labels[int(i)] for i in predict(other, each.images.to(each.noise) / 255).argmax(1)]
            for each in (before, after)
        )
        names = before.says
        right = [a == b and bool(f) for a, b, f in zip(clean, names, after.fooled, strict=True)]
        flips = [r and a != b for r, a, b in zip(right, spoilt, names, strict=True)]
        return sum(flips), sum(right)
