"""What is measured of images: rates with Wilson intervals, means, and labels that classifiers give saved images."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .._types import InputError
from ..metrics import beside, for_prompts
from ..metrics.check import check_metric, trial_of
from ..metrics.image_classifier import Labelled
from ..metrics.rewards.reward import check_prompts_matter, reads_prompts
from ..samplers.base import Sampler
from .sampling import saved

__all__ = ["Mean", "Rate", "change", "check_on_gray", "example", "labels_of", "predict", "recognized"]


@dataclass(frozen=True)
class Rate:
    """So many of so many, with the 95 % interval of Wilson (1927).

    (p + z^2 / 2n +- z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n),   z = 1.96
    """

    hits: int
    of: int

    @classmethod
    def of_mask(cls, mask: Tensor) -> "Rate":
        """Return the share of true entries."""
        return cls(int(mask.sum()), mask.numel())

    @property
    def share(self) -> float:
        """Between 0 and 1; 0 without trials."""
        return self.hits / self.of if self.of else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """Its 95 % interval; (0, 1) without trials."""
        if not self.of:
            return 0.0, 1.0
        z, n, p = 1.959963984540054, self.of, self.share
        middle = p + z * z / (2 * n)
        half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return max(0.0, (middle - half) / (1 + z * z / n)), min(1.0, (middle + half) / (1 + z * z / n))

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.share:.1f} % ({self.hits} of {self.of}; 95 %: {100 * low:.0f} to {100 * high:.0f})"

    def as_dict(self) -> dict[str, int | float]:
        """Return what result.json says of it."""
        low, high = self.interval
        return {"hits": self.hits, "of": self.of, "share": self.share, "low": low, "high": high}


@dataclass(frozen=True)
class Mean:
    """A mean over images with its 95 % interval by the normal approximation."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Tensor) -> "Mean":
        """Return the mean of one value an image; the interval of a single value is unbounded."""
        mean, n = float(values.mean()), len(values)
        half = 1.96 * float(values.std()) / n**0.5 if n > 1 else float("inf")
        return cls(mean, mean - half, mean + half)

    def __str__(self) -> str:
        return f"{self.mean:.4f} ({self.low:.4f} to {self.high:.4f})"

    def as_dict(self) -> dict[str, float]:
        """Return what result.json says of it."""
        return asdict(self)


def change(before: float | None, after: float | None) -> str:
    """Return how far a metric came, in words: "78 % lower", "3 % higher", "unchanged".

    Where it was not above 0 before, a share says nothing, and both values stand there.
    """
    if before is None or after is None:
        return "not measured"
    if before <= 0:
        return f"{after:.4g} after {before:.4g}"
    share = 100 * (after / before - 1)
    if not round(share):
        return "unchanged"
    digits = 1 if -100 < share < -99 else 0  # what is left is not nothing
    return f"{abs(share):.{digits}f} % {'lower' if share < 0 else 'higher'}"


def example(sampler: Sampler) -> Tensor:
    """Return an image (channels, height, width) of zeros as a sampler makes them, without making one.

    Raises:
        InputError: it makes videos or sound, says nothing of its images' shape, or they cannot be saved as grey or RGB.
    """
    if sampler.medium != "image":
        raise InputError(
            f"this task is of images, but this sampler makes {sampler.medium}; guide, tune and invert take it"
        )
    shape = getattr(sampler, "image_shape", None)
    if not isinstance(shape, tuple | torch.Size) or len(shape) != 3 or shape[0] not in (1, 3):
        raise InputError(
            f"the sampler's image_shape must be (1 or 3, height, width), but is {shape}; a Sampler of one's own sets it"
        )
    return sampler.noise(1, 0).new_zeros(tuple(shape))


def predict(classifier: Callable[[Tensor], Tensor], images: Tensor, batch: int = 64) -> Tensor:
    """Return logits of images, in parts; of a video, the mean over its frames."""
    if images.ndim == 5:
        return predict(classifier, images.flatten(0, 1), batch).unflatten(0, images.shape[:2]).mean(1)
    with torch.no_grad():
        return torch.cat([classifier(part) for part in images.split(batch)])


def recognized(judge: nn.Module | None, images: Tensor, labels: Tensor | int | None) -> Rate | None:
    """Return how often a judge gives saved images the wanted labels; None without a judge or labels."""
    if judge is None or labels is None:
        return None
    found = predict(judge, saved(images)).argmax(1).cpu()
    return Rate.of_mask(found == (labels if isinstance(labels, int) else labels.cpu()))


def check_on_gray(sampler: Sampler, prompts: Sequence[str], *metrics: Any) -> None:
    """Try metrics on a gray image of the sampler's size, beside another one, before there is any work to lose.

    Args:
        sampler: makes the images.
        prompts: those of the images; each is read once, and a reward must tell them apart.
        metrics: what is tried.

    Raises:
        InputError: a metric fails on it, has no value an image, or has no gradient; or a reward ignores the prompt.
    """
    like = sampler.noise(1)
    gray = trial_of(sampler.output_shape, 1, like)
    for metric in metrics:
        for prompt in dict.fromkeys(prompts):
            check_metric(for_prompts(beside(metric, gray), [prompt]), sampler.output_shape, 1, like)
            if not reads_prompts(metric):
                break
        check_prompts_matter(metric, prompts, like.device)


def labels_of(
    classifier: nn.Module, prompts: Sequence[str], labels: Sequence[str | int] | None
) -> list[int]:
    """Return the class of each prompt: as given, or the longest of the classifier's labels that stands in the prompt.

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
    """Return the one label that stands in a prompt, whatever stands within it left out.

    Raises:
        InputError: there is none, or several.
    """
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
