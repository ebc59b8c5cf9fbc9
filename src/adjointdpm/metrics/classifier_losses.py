"""Metrics of a classifier's logits, for a label an image: to lower them is to leave, or to reach, the label.

    Margin           z_y - max_{k != y} z_k        to leave y
    Logit            -z_y                          to reach y; unbounded
    LogProbability   -log softmax(z)_y             to reach y

All are of logits. Softmax followed by a cross-entropy that takes its own softmax (as in the paper's release)
flattens the loss to between 0 and about 1, and its gradient with it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .._types import InputError
from .base import AnyImages, Values, Weighable

__all__ = ["LogProbability", "Logit", "Margin"]


@dataclass(frozen=True, eq=False)
class Margin(Weighable):
    """How far a classifier is from changing its mind: the label's logit less the best other one.

        z_label - max_{k != label} z_k          positive where the label is what it says

    On logits, not probabilities: a saturated softmax has no gradient. Negated (`-Margin(...)`) it reaches
    the label instead.

    Args:
        classifier: images in [0, 1] to logits (batch, classes).
        labels: (batch,) the label's number for each image, or one number for all.
    """

    classifier: Callable[[Tensor], Tensor]
    labels: Tensor | int

    def __call__(self, images: AnyImages) -> Values:
        logits, labels = _logits(self.classifier, self.labels, images)
        own = torch.nn.functional.one_hot(labels, logits.shape[1]).bool()
        return logits[own] - logits.masked_fill(own, -torch.inf).amax(1)


@dataclass(frozen=True, eq=False)
class Logit(Weighable):
    """-z_label: the label's own logit, negated. Arguments as of `Margin`."""

    classifier: Callable[[Tensor], Tensor]
    labels: Tensor | int

    def __call__(self, images: AnyImages) -> Values:
        logits, labels = _logits(self.classifier, self.labels, images)
        return -logits.gather(1, labels[:, None])[:, 0]


@dataclass(frozen=True, eq=False)
class LogProbability(Weighable):
    """-log softmax(z)_label, at least 0. Arguments as of `Margin`."""

    classifier: Callable[[Tensor], Tensor]
    labels: Tensor | int

    def __call__(self, images: AnyImages) -> Values:
        logits, labels = _logits(self.classifier, self.labels, images)
        return -torch.log_softmax(logits, 1).gather(1, labels[:, None])[:, 0]


def _logits(
    classifier: Callable[[Tensor], Tensor], labels: Tensor | int, images: Tensor
) -> tuple[Tensor, Tensor]:
    logits = classifier(images)
    each = torch.as_tensor(labels, device=logits.device)
    each = each.expand(len(images)) if each.ndim == 0 else each
    if each.shape != (len(images),):
        raise InputError(
            f"there are {len(images)} images, but labels for {tuple(each.shape)}; give one each"
        )
    if bool(((each < 0) | (each >= logits.shape[1])).any()):
        raise InputError(
            f"labels are below {logits.shape[1]}, the number of classes, but are {each.tolist()}"
        )
    return logits, each
