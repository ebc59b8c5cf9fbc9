"""What a learned token is to do to the images of its prompts: the metric of an image x beside an image of comparison y.

    L(x; y) = metric.beside(y)(x)          x the image with the token, of some noise

    MetricGoal   y the image of the same noise and prompt without the token, and any metric
    PromptGoal   y what a known word does to the prompt, and a distance
    EffectGoal   y what an effect does to the image without the token, and a distance
    ImageGoal    y given images, and a distance

A distance is a metric whose every term compares x with y; a metric may have other terms, such as a reference's style.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from torch import Tensor

from ..._types import InputError
from ...metrics import EffectDistance, Pixels
from ...metrics.base import Paired, name_of, terms_of

__all__ = ["EffectGoal", "Goal", "ImageGoal", "MetricGoal", "PromptGoal", "check_distance"]

ImagesWith = Callable[[str], Tensor]


@dataclass(frozen=True, eq=False, repr=False)
class Goal(ABC):
    """What a token is to do: a metric, and the images that its paired terms compare with."""

    has_targets: ClassVar[bool] = True
    """Whether the images of comparison are what the token is to reach."""
    seen_noise_only: ClassVar[bool] = False
    """Whether there are images of comparison only for the noise and prompts that are trained on."""

    @property
    @abstractmethod
    def loss(self) -> Any:
        """The metric, whose paired terms `metrics.beside` compares with the images of `compared`."""

    @abstractmethod
    def compared(self, images_with: ImagesWith) -> Tensor:
        """Return the images of comparison of some pairs of noise and prompt.

        Args:
            images_with: a function that returns the images of these pairs, (batch, 3, height, width), with a known
                word in place of the token, or without any for "". Nothing is sampled before it is called.

        Returns:
            the images of comparison, row by row.
        """

    @property
    @abstractmethod
    def words(self) -> str:
        """The goal in words, for a page."""

    def __repr__(self) -> str:
        values = ", ".join(_name(getattr(self, each.name)) for each in fields(self))
        return f"{type(self).__name__}({values})"


@dataclass(frozen=True, eq=False, repr=False)
class MetricGoal(Goal):
    """A low value of a metric, such as the style of one reference image and the content without the token.

        L(v) = metric.beside(x(noise, c without token)) (x(noise, c(v)))

    Use it where there is one image of a visual effect and no other supervision: `Style(features, image) +
    0.3 * Content(features)`. Where the effect itself is known as a function or a word, `EffectGoal` and `PromptGoal`
    say more of it.

    Args:
        metric: any metric; lower is better. Its paired terms compare with the image of the same noise and prompt
            without the token.

    Examples:
        >>> import adjointdpm as adp
        >>> adp.tasks.MetricGoal(adp.metrics.Chroma() + 0.3 * adp.metrics.Pixels())
        MetricGoal(Chroma + 0.3*Pixels)
    """

    has_targets: ClassVar[bool] = False
    metric: Any

    @property
    def loss(self) -> Any:
        return self.metric

    @property
    def words(self) -> str:
        return f"a low value of {name_of(self.metric)}"

    def compared(self, images_with: ImagesWith) -> Tensor:
        return images_with("")


class DistanceGoal(Goal):
    """A goal whose loss is a distance to the images of comparison."""

    distance: Any
    """A metric whose every term compares with these images."""

    def __post_init__(self) -> None:
        check_distance(self.distance)

    @property
    def loss(self) -> Any:
        return self.distance


@dataclass(frozen=True, eq=False, repr=False)
class PromptGoal(DistanceGoal):
    """The images that the same noise gives with a word that the text encoder knows.

    Args:
        word: such as "sepia"; used for nothing but the images of comparison.
        distance: a metric whose every term compares with these images.

    Raises:
        InputError: a term of the distance has a goal of its own.
    """

    word: str
    distance: Any = field(default_factory=Pixels)

    @property
    def words(self) -> str:
        return f"the images that the word “{self.word}” gives, by {name_of(self.distance)}"

    def compared(self, images_with: ImagesWith) -> Tensor:
        return images_with(self.word)


@dataclass(frozen=True, eq=False, repr=False)
class EffectGoal(DistanceGoal):
    """An effect on the image that the same noise gives without the token.

    Args:
        effect: images to images of the same shape, such as `metrics.effect("sepia")`.
        distance: a metric whose every term compares with the result.

    Raises:
        InputError: a term of the distance has a goal of its own.
    """

    effect: Callable[[Tensor], Tensor]
    distance: Any = field(default_factory=Pixels)

    @property
    def words(self) -> str:
        return (
            f"the effect {_name(self.effect)} on the images without the token, by {name_of(self.distance)}"
        )

    def compared(self, images_with: ImagesWith) -> Tensor:
        images = images_with("")
        if images.ndim == 5:  # frame by frame
            return self.effect(images.flatten(0, 1)).unflatten(0, images.shape[:2])
        return self.effect(images)


@dataclass(frozen=True, eq=False, repr=False)
class ImageGoal(DistanceGoal):
    """Given images of the noise that is trained on, as in the paper.

    An inversion saves the images of its seen noise without the token (the folder `without-token`): edit these in any
    way and give the results back, in the same order, with the same seed. Other noise has no target, so that its report
    has images and what a judge names, and no distance.

    Args:
        images: (batch, 3, height, width) in [0, 1]: all images of the first prompt, then those of the second.
        distance: a metric whose every term compares with these images.

    Raises:
        InputError: a term of the distance has a goal of its own.

    References:
        Pan, Liew, Tan, Feng and Yan, 2024, arXiv 2307.10711.
    """

    seen_noise_only: ClassVar[bool] = True
    images: Tensor
    distance: Any = field(default_factory=Pixels)

    @property
    def words(self) -> str:
        return f"the given images, by {name_of(self.distance)}"

    def compared(self, images_with: ImagesWith) -> Tensor:
        return self.images


def check_distance(distance: Any) -> None:
    """Check that a metric measures how far images are from the images of comparison, and from nothing else.

    Args:
        distance: the metric.

    Raises:
        InputError: a term has a goal of its own, so that what is trained would not be what is reported.
    """
    for term in terms_of(distance):
        if not isinstance(term, Paired) or isinstance(term, EffectDistance):
            raise InputError(
                f"{type(term).__name__} has a goal of its own beside the images that the token is to reach; use "
                "metrics.Pixels(), metrics.Content(...) or a sum of them as a distance, or MetricGoal(metric) alone"
            )


def _name(value: Any) -> str:
    """Return a value's name, which is the same in every process, as a checkpoint must be able to compare it."""
    if isinstance(value, Tensor):
        return f"images of shape {tuple(value.shape)}"
    return repr(value) if isinstance(value, str) else name_of(value)
