"""Metrics as values: sums, products with numbers, and metrics that look at a second image.

    L(x) = w_1 L_1(x) + w_2 L_2(x)            `Sum`, or written with + and *
    L(x; y) = metric.beside(y)(x)             y the image that x is compared with, row by row

A metric is any callable from (batch, 3, height, width) to (batch,); lower is better. A reference that is
not known before the sampling (the untuned model's image of the same noise) is given by `beside`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from jaxtyping import Float
from torch import Tensor

from .._types import InputError

__all__ = ["AnyImages", "Images", "Metric", "Paired", "Plain", "Sum", "Values", "Weighable", "beside"]

Images = Float[Tensor, "batch 3 height width"]
Metric = Callable[[Images], Float[Tensor, "batch"]]
AnyImages = Float[Tensor, "batch channels height width"]
Values = Float[Tensor, "batch"]
Plain = Callable[[Tensor], Tensor]


class Weighable:
    """What can be written in a weighted sum: `0.5 * style + 2 * content`."""

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
    """A metric of an image and another one that is only known while sampling."""

    @abstractmethod
    def beside(self, others: AnyImages) -> Plain:
        """The metric of images compared with these, row by row."""

    def __call__(self, images: AnyImages) -> Values:
        raise InputError(
            f"{type(self).__name__} compares with another image; give it one with .beside(images), or use "
            "it in a task, which compares with the image of the same noise before"
        )


@dataclass(frozen=True, eq=False)
class Sum(Weighable):
    """sum_k w_k L_k(x): metrics with their weights.

    Args:
        terms: (weight, metric) each; at least one.

    Raises:
        InputError: there is no term.
    """

    terms: tuple[tuple[float | int, Plain], ...]

    def __post_init__(self) -> None:
        if not self.terms:
            raise InputError("a sum of metrics needs at least one, but has none")

    def __call__(self, images: AnyImages) -> Values:
        (weight, metric), *rest = self.terms
        total = weight * metric(images)
        for weight, metric in rest:
            total = total + weight * metric(images)
        return total

    def beside(self, others: AnyImages) -> "Sum":
        """The same sum, its paired terms compared with these images."""
        return Sum(tuple((weight, beside(metric, others)) for weight, metric in self.terms))


def beside(metric: Plain, others: AnyImages) -> Plain:
    """A metric compared with other images, if it is one that compares; itself if not."""
    return metric.beside(others) if isinstance(metric, Paired | Sum) else metric


def _terms(metric: Any) -> tuple[tuple[float | int, Plain], ...]:
    if isinstance(metric, Sum):
        return metric.terms
    if not callable(metric):
        raise InputError(f"only metrics can be added up, but {metric!r} is no callable")
    return ((1.0, cast(Plain, metric)),)
