"""What an audit is told: its settings, and what the pictures show."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import nn

from .._types import InputError
from ..metrics.image_classifier import Labelled
from .balls import Ball

__all__ = ["AuditSettings", "labels_of"]


@dataclass(frozen=True)
class AuditSettings:
    """What an audit does.

    Args:
        ball: where the noise may be; its radius is the main one.
        radii: further radii, for the curve of success against the ball's size.
        starts: pictures a prompt.
        tries: noises tried for each of them until the classifier reads the picture right.
        steps: of the optimisation.
        learning_rate: a step's length, as a fraction of the ball's radius.
        momentum: of the normalised steps (Dong et al., 2018, arXiv 1710.06081).
        confidence: logits by which the classifier is to be wrong before only the picture's likeness counts.
        keep_weight: of that likeness; see `tasks.attack`.
        controls: whether random noise and SPSA are tried, too.
        batch_size: pictures at once.
        seed: of everything that is drawn.
        checkpointing_steps: steps between checkpoints.
    """

    ball: Ball = field(default_factory=Ball)
    radii: tuple[float, ...] = ()
    starts: int = 1
    tries: int = 4
    steps: int = 20
    learning_rate: float = 0.25
    momentum: float = 0.0
    confidence: float = 1.0
    keep_weight: float = 1.0
    controls: bool = True
    batch_size: int = 8
    seed: int = 0
    checkpointing_steps: int = 5

    def __post_init__(self) -> None:
        for name in ("starts", "tries", "steps", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, but is {getattr(self, name)}")
        for name in ("confidence", "keep_weight"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} must not be negative, but is {getattr(self, name)}")


def labels_of(
    classifier: nn.Module, prompts: Sequence[str], labels: Sequence[str | int] | None
) -> list[int]:
    """The class of each prompt: as given, or the longest of the classifier's labels that stands in the prompt.

    Args:
        classifier: what has the labels.
        prompts: what the images show.
        labels: names or numbers of classes, one a prompt.
    Raises:
        InputError: an unknown label, another number of them, or a prompt that names none, or several things.
    """
    if not isinstance(classifier, Labelled):
        raise InputError(
            f"a {type(classifier).__name__} has no names for its classes; wrap it: "
            "adjointdpm.zoo.PlainClassifier(module, labels)"
        )
    if isinstance(labels, str):
        raise InputError(f"labels are a list with one label a prompt, but are {labels!r}")
    if labels is not None:
        if len(labels) != len(prompts):
            raise InputError(
                f"there are {len(prompts)} prompts and {len(labels)} labels; give one for each"
            )
        return [classifier.index(label) for label in labels]
    return [classifier.index(_named(classifier, prompt)) for prompt in prompts]


def _named(classifier: Labelled, prompt: str) -> str:
    """The one label that stands in a prompt, whatever stands within it left out."""
    found: list[tuple[int, int, str]] = []
    for label in filter(None, classifier.names):
        word = rf"(?<![\w-]){re.escape(label)}(?![\w-])"
        found += [(*each.span(), label) for each in re.finditer(word, prompt, re.IGNORECASE)]
    whole = {
        label
        for first, last, label in found
        if not any(a <= first and last <= b and (a, b) != (first, last) for a, b, _ in found)
    }
    if not whole:
        raise InputError(f"no label of the classifier stands in the prompt {prompt!r}; give labels")
    if len(whole) > 1:
        raise InputError(
            f"the prompt {prompt!r} names several labels of the classifier ({', '.join(sorted(whole))}); give labels"
        )
    return whole.pop()
