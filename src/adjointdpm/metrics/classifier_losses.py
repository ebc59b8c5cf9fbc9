"""Metrics of a classifier's logits z, for one label y an image.

    Margin           z_y - max_{k != y} z_k        lower it to leave y
    Logit            -z_y                          lower it to reach y; it is unbounded
    LogProbability   -log softmax(z)_y             lower it to reach y

All of them take logits. A softmax before a cross-entropy that takes its own softmax (as in the paper's release)
squeezes the loss of two classes into (0.31, 1.31), and shrinks its gradient accordingly.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .._types import InputError
from .base import AnyImages, Values, Weighable

__all__ = ["LogProbability", "Logit", "Margin", "margin_of"]


@dataclass(frozen=True, eq=False)
class Margin(Weighable):
    """The distance of a classifier from changing its decision: the label's logit less the largest other one.

        z_label - max_{k != label} z_k          positive where the classifier decides for the label

    Lower it to find misclassified images. It uses logits, since a saturated softmax has a vanishing gradient. Its
    negative (`-Margin(...)`) is lowered to reach the label.

    Args:
        classifier: a function from images in [0, 1] to logits (batch, classes).
        labels: the label's number for each image, (batch,), or one number for all images.

    Raises:
        InputError: when called, if the number of labels is not the number of images, or a label is not the number
            of a class.

    Examples:
        >>> import torch
        >>> import adjointdpm as adp
        >>> def classifier(images):
        ...     return images.mean((2, 3))
        >>> image = torch.tensor([0.5, 0.25, 0.0]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
        >>> adp.metrics.Margin(classifier, 0)(image).tolist()
        [0.25]
    """

    classifier: Callable[[Tensor], Tensor]
    labels: Tensor | int

    def __call__(self, images: AnyImages) -> Values:
        logits, labels = _logits(self.classifier, self.labels, images)
        return margin_of(logits, labels)


@dataclass(frozen=True, eq=False)
class Logit(Weighable):
    """The label's own logit, negated.

        -z_label

    Lower it to reach the label. It has no bound, so that an optimization can raise the logit without changing the
    image's appearance; prefer `LogProbability` where that happens.

    Args:
        classifier: a function from images in [0, 1] to logits (batch, classes).
        labels: the label's number for each image, (batch,), or one number for all images.

    Raises:
        InputError: when called, if the number of labels is not the number of images, or a label is not the number
            of a class.

    Examples:
        >>> import torch
        >>> import adjointdpm as adp
        >>> def classifier(images):
        ...     return images.mean((2, 3))
        >>> image = torch.tensor([0.5, 0.25, 0.0]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
        >>> adp.metrics.Logit(classifier, 1)(image).tolist()
        [-0.25]
    """

    classifier: Callable[[Tensor], Tensor]
    labels: Tensor | int

    def __call__(self, images: AnyImages) -> Values:
        logits, labels = _logits(self.classifier, self.labels, images)
        return -logits.gather(1, labels[:, None])[:, 0]


@dataclass(frozen=True, eq=False)
class LogProbability(Weighable):
    """The cross-entropy of the label.

        -log softmax(z)_label          at least 0

    Lower it to reach the label. Its gradient vanishes once the label's probability is close to 1.

    Args:
        classifier: a function from images in [0, 1] to logits (batch, classes).
        labels: the label's number for each image, (batch,), or one number for all images.

    Raises:
        InputError: when called, if the number of labels is not the number of images, or a label is not the number
            of a class.

    Examples:
        >>> import torch
        >>> import adjointdpm as adp
        >>> def classifier(images):
        ...     return images.mean((2, 3))
        >>> value = adp.metrics.LogProbability(classifier, 0)(torch.full((1, 3, 4, 4), 0.5))
        >>> round(value.item(), 4)
        1.0986
    """

    classifier: Callable[[Tensor], Tensor]
    labels: Tensor | int

    def __call__(self, images: AnyImages) -> Values:
        logits, labels = _logits(self.classifier, self.labels, images)
        return -torch.log_softmax(logits, 1).gather(1, labels[:, None])[:, 0]


def margin_of(logits: Tensor, labels: Tensor) -> Tensor:
    """Return z_y - max_{k != y} z_k for each row, (batch,).

    Args:
        logits: (batch, classes).
        labels: (batch,).
    """
    own = labels[:, None]
    return logits.gather(1, own)[:, 0] - logits.scatter(1, own, -torch.inf).amax(1)


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
