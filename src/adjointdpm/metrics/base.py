"""Metrics as values: sums, products with numbers, and metrics that look at a second image or at the prompt.

    L(x) = w_1 L_1(x) + w_2 L_2(x)            `Sum`, or written with + and *
    L(x; y) = metric.beside(y)(x)             y the image that x is compared with, row by row
    L(x; p) = metric.for_prompts(p)(x)        p the prompt that x was made for, row by row

A metric is any callable from (batch, 3, height, width) to (batch,); lower is better. What is not known before the
sampling (the untuned model's image of the same noise, the prompt) is passed to `beside` and `for_prompts`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

from jaxtyping import Float
from torch import Tensor

from .._types import InputError

__all__ = [
    "AnyImages",
    "AnySamples",
    "Composed",
    "Images",
    "Metric",
    "Paired",
    "Plain",
    "Prompted",
    "Sum",
    "Values",
    "Weighable",
    "beside",
    "for_prompts",
    "is_paired",
    "name_of",
    "terms_of",
]

Images = Float[Tensor, "batch 3 height width"]
Metric = Callable[[Images], Float[Tensor, "batch"]]
AnyImages = Float[Tensor, "batch channels height width"]
AnySamples = Float[Tensor, "batch *shape"]
Values = Float[Tensor, "batch"]
Plain = Callable[[Tensor], Tensor]


class Weighable:
    """Base class of metrics that can be added up with weights: `0.5 * style + 2 * content`.

        (w L)(x) = w L(x),     (L + K)(x) = L(x) + K(x)

    Derive your own metric from it to use +, - and * on it. Any other callable can be a term of such a sum, too, if one
    of the terms is of this class.

    Examples:
        >>> import torch
        >>> import adjointdpm as adp
        >>> def brightness(images):
        ...     return images.mean((1, 2, 3))
        >>> metric = 2.0 * adp.metrics.Chroma() + brightness
        >>> metric(torch.full((1, 3, 8, 8), 0.5)).tolist()
        [0.5]
    """

    def __add__(self, other: Any) -> "Sum":
        return Sum((*_terms(self), *_terms(other)))

    def __radd__(self, other: Any) -> "Sum":
        return Sum((*_terms(other), *_terms(self)))

    def __mul__(self, weight: float | int) -> "Sum":
        return Sum(tuple((weight * w, metric) for w, metric in _terms(self)))

    __rmul__ = __mul__

    def __neg__(self) -> "Sum":
        return self * -1.0

    def __sub__(self, other: Any) -> "Sum":
        return self + -1.0 * Sum(_terms(other))


class Paired(Weighable, ABC):
    """A metric that compares an image with another one, which is only known while sampling.

    Tasks call `beside` with the image of the same noise before the optimization. A call without a second image is an
    error. Where the second image is known in advance, use a metric that holds it (`PixelDistance`, `ContentDistance`).

    Raises:
        InputError: when called directly.
    """

    @abstractmethod
    def beside(self, others: AnyImages) -> Plain:
        """Return the metric that compares images with the given ones.

        Args:
            others: (batch, channels, height, width), in [0, 1]; row i is compared with row i of the images.

        Returns:
            a metric of a batch of the same size.
        """

    def __call__(self, images: AnyImages) -> Values:
        raise InputError(
            f"{type(self).__name__} compares with another image; give it one with .beside(images), or use "
            "it in a task, which compares with the image of the same noise before"
        )


class Prompted(Weighable, ABC):
    """A metric that reads the prompt of each image, such as a reward.

    Tasks call `for_prompts` with the prompts of the images. A call without prompts is an error. Where one text is known
    in advance, use a metric that holds it (`ClipDistance`).

    Raises:
        InputError: when called directly.
    """

    @abstractmethod
    def for_prompts(self, prompts: Sequence[str]) -> Plain:
        """Return the metric of images that were made for given prompts.

        Args:
            prompts: one for each image of a batch, or a single one for all of them.

        Returns:
            a metric of images alone.
        """

    def __call__(self, images: AnyImages) -> Values:
        raise InputError(
            f"{type(self).__name__} reads the prompts of the images; give it them with .for_prompts(prompts), or use "
            "it in a task, which passes its prompts"
        )


class Composed(Weighable, ABC):
    """A metric made of others, to which it passes the images of comparison and the prompts on."""

    @property
    @abstractmethod
    def parts(self) -> Sequence[Plain]:
        """The metrics that it is made of."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Its name, the same in every process."""

    @abstractmethod
    def beside(self, others: AnySamples) -> Plain:
        """Return the same metric with each `Paired` part compared with the given images."""

    @abstractmethod
    def for_prompts(self, prompts: Sequence[str]) -> Plain:
        """Return the same metric with each `Prompted` part for the given prompts."""


@dataclass(frozen=True, eq=False)
class Sum(Composed):
    """A weighted sum of metrics.

        L(x) = sum_k w_k L_k(x)

    The operators + and * of a `Weighable` make it; build it yourself where no term is a `Weighable`.

    Args:
        terms: pairs (weight, metric), at least one.

    Raises:
        InputError: there is no term.

    Examples:
        >>> import torch
        >>> import adjointdpm as adp
        >>> metric = adp.metrics.Sum(((0.5, adp.metrics.Chroma()), (2.0, lambda images: images.mean((1, 2, 3)))))
        >>> metric(torch.full((1, 3, 8, 8), 0.25)).tolist()
        [0.5]
    """

    terms: tuple[tuple[float | int, Plain], ...]

    def __post_init__(self) -> None:
        if not self.terms:
            raise InputError("a sum of metrics needs at least one, but has none")

    @property
    def parts(self) -> Sequence[Plain]:
        """The terms without their weights."""
        return [metric for _, metric in self.terms]

    @property
    def name(self) -> str:
        """The names of its terms with their weights."""
        terms = [(weight, name_of(term)) for weight, term in self.terms]
        return " + ".join(name if weight == 1 else f"{weight:g}*{name}" for weight, name in terms)

    def __call__(self, images: AnySamples) -> Values:
        (weight, metric), *rest = self.terms
        total = weight * metric(images)
        for weight, metric in rest:
            total = total + weight * metric(images)
        return total

    def beside(self, others: AnySamples) -> "Sum":
        """Return the same sum with each `Paired` term compared with the given images.

        Args:
            others: (batch, channels, height, width), in [0, 1]; or videos, as the images are.

        Returns:
            the sum, in which no term is a `Paired`.
        """
        return Sum(tuple((weight, beside(metric, others)) for weight, metric in self.terms))

    def for_prompts(self, prompts: Sequence[str]) -> "Sum":
        """Return the same sum with each `Prompted` term for the given prompts.

        Args:
            prompts: one for each image of a batch, or a single one for all of them.

        Returns:
            the sum, in which no term is a `Prompted`.
        """
        return Sum(tuple((weight, for_prompts(metric, prompts)) for weight, metric in self.terms))


def beside(metric: Plain, others: AnySamples) -> Plain:
    """Pass the images of comparison to a metric, if it is a `Paired` or a `Sum`.

    Args:
        metric: any metric.
        others: (batch, channels, height, width), in [0, 1].

    Returns:
        the metric that compares with these images; the metric itself if it is of another kind.

    Examples:
        >>> import torch
        >>> import adjointdpm as adp
        >>> before = torch.zeros(1, 3, 8, 8)
        >>> metric = adp.metrics.beside(adp.metrics.Pixels(), before)
        >>> metric(torch.full((1, 3, 8, 8), 0.5)).tolist()
        [0.25]
    """
    return metric.beside(others) if isinstance(metric, Paired | Composed) else metric


def is_paired(metric: Plain) -> bool:
    """Whether a metric, or a term of it, compares an image with another one, which `beside` then passes to it.

    Args:
        metric: any metric.

    Returns:
        whether it needs `beside`.
    """
    return any(isinstance(each, Paired) for each in terms_of(metric))


def terms_of(metric: Any) -> Iterator[Any]:
    """Yield the metrics that a metric is made of, without those that are made of others; else the metric itself."""
    if not isinstance(metric, Composed):
        yield metric
        return
    for part in metric.parts:
        yield from terms_of(part)


def for_prompts(metric: Plain, prompts: Sequence[str]) -> Plain:
    """Pass the prompts of images to a metric, if it is a `Prompted` or a `Sum`.

    Args:
        metric: any metric.
        prompts: one for each image of a batch, or a single one for all of them.

    Returns:
        the metric of images that were made for these prompts; the metric itself if it is of another kind.

    Examples:
        >>> import torch
        >>> import adjointdpm as adp
        >>> def length(images, prompts):
        ...     return images.mean((1, 2, 3)) * torch.tensor([len(each) for each in prompts])
        >>> reward = adp.metrics.rewards.FunctionReward(length)
        >>> adp.metrics.for_prompts(reward, ["a cat"])(torch.full((1, 3, 8, 8), 0.5)).tolist()
        [-2.5]
    """
    return metric.for_prompts(prompts) if isinstance(metric, Prompted | Composed) else metric


def name_of(metric: Any) -> str:
    """Return a metric's name, the same in every process, such as "Style + 0.3*Content".

    Args:
        metric: any metric.

    Returns:
        that of its class or function; of a sum, the names of its terms with their weights.
    """
    if isinstance(metric, Composed):
        return metric.name
    return getattr(metric, "__qualname__", type(metric).__name__)


def _terms(metric: Any) -> tuple[tuple[float | int, Plain], ...]:
    if isinstance(metric, Sum):
        return metric.terms
    if not callable(metric):
        raise InputError(f"only metrics can be added up, but {metric!r} is no callable")
    return ((1.0, cast(Plain, metric)),)
