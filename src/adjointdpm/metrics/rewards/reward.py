"""What rewards have in common: their scores, their sign as a metric, and a threshold."""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..._types import InputError
from ..base import AnyImages, Plain, Prompted, Values, terms_of
from ..image_processor import probe_image

__all__ = ["FunctionReward", "Reward", "Threshold", "check_prompts_matter", "reads_prompts"]


class Reward(Prompted):
    """How good images are for their prompts; as a metric it is lowered, so that its value is -r.

        L(x; p) = -r(x, p)

    Derive from it and write `scores`; or pass a function to `FunctionReward`. Rewards are weighed and added up like all
    metrics: `reward + 0.1 * Pixels()`.
    """

    reads_prompts: ClassVar[bool] = True
    """Whether the scores depend on the prompts. Where they do not, the reward is a metric of images alone, too."""

    @abstractmethod
    def scores(self, images: AnyImages, prompts: Sequence[str]) -> Values:
        """Return r: one number an image, higher is better.

        Args:
            images: (batch, 3, height, width), in [0, 1].
            prompts: as many as images.
        """

    def for_prompts(self, prompts: Sequence[str]) -> Plain:
        return _Scored(self, _texts(prompts), _negative)

    def at_least(self, threshold: float) -> "Threshold":
        """Return the metric that asks for this reward and for no more, against hacking.

        Args:
            threshold: c, in the reward's unit.
        """
        return Threshold(self, threshold)

    def __call__(self, images: AnyImages) -> Values:
        return super().__call__(images) if self.reads_prompts else self.for_prompts([""])(images)


@dataclass(frozen=True, eq=False)
class Threshold(Prompted):
    """What a reward lacks to a threshold.

        L(x; p) = max(c - r(x, p), 0)

    Use it where a reward is high enough at some value, and rises further only by images that look worse: an image that
    has reached it has no gradient any more.

    Args:
        reward: r.
        threshold: c, in the reward's unit.
    """

    reward: Reward
    threshold: float

    def for_prompts(self, prompts: Sequence[str]) -> Plain:
        return _Scored(self.reward, _texts(prompts), lambda scores: (self.threshold - scores).relu())

    def __call__(self, images: AnyImages) -> Values:
        if self.reward.reads_prompts:
            return super().__call__(images)
        return self.for_prompts([""])(images)


@dataclass(frozen=True, eq=False)
class FunctionReward(Reward):
    """Your own reward.

        L(x; p) = -function(x, p)

    Args:
        function: images (batch, 3, height, width) in [0, 1] and a list of as many prompts to a tensor (batch,); higher
            is better.

    Examples:
        >>> import torch
        >>> import adjointdpm as adp
        >>> def red_where_asked(images, prompts):
        ...     asked = torch.tensor([float("red" in each) for each in prompts])
        ...     return asked * images[:, 0].mean((1, 2))
        >>> reward = adp.metrics.rewards.FunctionReward(red_where_asked)
        >>> metric = (0.5 * reward).for_prompts(["a red apple", "a pear"])
        >>> metric(torch.ones(2, 3, 8, 8)).tolist()
        [-0.5, -0.0]
    """

    function: Callable[[Tensor, list[str]], Tensor]

    def scores(self, images: AnyImages, prompts: Sequence[str]) -> Values:
        return self.function(images, list(prompts))


@dataclass(frozen=True, eq=False)
class _Scored:
    """A reward of given prompts, as a metric."""

    reward: Reward
    prompts: list[str]
    sign: Callable[[Tensor], Tensor]

    def __call__(self, images: Tensor) -> Tensor:
        prompts = self.prompts * len(images) if len(self.prompts) == 1 else self.prompts
        if len(prompts) != len(images):
            raise InputError(
                f"a reward reads one prompt an image, or one for all, but got {len(prompts)} prompts for "
                f"{len(images)} images"
            )
        return self.sign(self.reward.scores(images, prompts))


def _negative(scores: Tensor) -> Tensor:
    return -scores


def _texts(prompts: Sequence[str]) -> list[str]:
    if isinstance(prompts, str) or not prompts:
        raise InputError(f"prompts are a list of at least one text, but are {prompts!r}")
    return list(prompts)


def check_prompts_matter(metric: Any, prompts: Sequence[str], device: torch.device) -> None:
    """Raise if a reward gives an image of noise the same value for different prompts.

    Args:
        metric: any metric.
        prompts: those that will be scored; nothing is checked if all of them are the same.
        device: where images are.

    Raises:
        InputError: a term of the metric is a reward that reads prompts and ignores these.
    """
    first, *others = dict.fromkeys(prompts)
    for reward in _rewards(metric) if others else ():
        image = probe_image(3, 64, 64).to(device)
        values = [reward.for_prompts([each])(image) for each in (first, others[0])]
        if torch.equal(*values):
            raise InputError(
                f"the reward {_name(reward)} gives the same value for {first!r} and {others[0]!r}, so it ignores the "
                "prompt; if that is meant, give it as a metric of the images alone"
            )


def reads_prompts(metric: Any) -> bool:
    """Return whether a term of a metric reads prompts."""
    return any(isinstance(each, Prompted) for each in terms_of(metric))


def _rewards(metric: Any) -> Iterator[Reward]:
    """Yield the rewards among a metric's terms that read prompts."""
    for each in terms_of(metric):
        reward = each.reward if isinstance(each, Threshold) else each
        if isinstance(reward, Reward) and reward.reads_prompts:
            yield reward


def _name(reward: Reward) -> str:
    function = reward.function if isinstance(reward, FunctionReward) else type(reward)
    return getattr(function, "__name__", type(function).__name__)
