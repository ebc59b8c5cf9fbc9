"""Metrics on finished pictures: one differentiable value a picture, from (batch, 3, height, width).

Any callable of that kind will do; these are the ones the demonstration and the tests use.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["Chroma", "Margin", "PixelDistance"]

Images = Float[Tensor, "batch 3 height width"]
Values = Float[Tensor, "batch"]

# Rec. 709 weights of red, green and blue in luminance.
LUMINANCE = (0.2126, 0.7152, 0.0722)


@dataclass(frozen=True, eq=False)
class Margin:
    """How far a classifier is from changing its mind: the label's logit less the best other one.

        z_label - max_{k != label} z_k          positive where the label is what it says

    On logits, not probabilities: a saturated softmax has no gradient.

    Args:
        classifier: pictures in [0, 1] to logits (batch, classes).
        labels: (batch,) the label's number for each picture.
    """

    classifier: Callable[[Tensor], Tensor]
    labels: Tensor

    def __call__(self, images: Images) -> Values:
        logits = self.classifier(images)
        own = torch.nn.functional.one_hot(self.labels, logits.shape[1]).bool()
        return logits[own] - logits.masked_fill(own, -torch.inf).amax(1)


@dataclass(frozen=True, eq=False)
class PixelDistance:
    """Mean squared difference to a target picture, in units of the full range.

    Args:
        target: (batch, 3, height, width) or (3, height, width), in [0, 1].
    """

    target: Tensor

    def __call__(self, images: Images) -> Values:
        return ((images - self.target) ** 2).flatten(1).mean(1)


@dataclass(frozen=True)
class Chroma:
    """How colourful a picture is: the mean squared distance of its pixels from their own grey.

    mean over pixels and channels of (c - Y)^2,   Y the luminance (Rec. 709)
    """

    def __call__(self, images: Images) -> Values:
        weights = torch.tensor(LUMINANCE, dtype=images.dtype, device=images.device)
        grey = (images * weights.view(3, 1, 1)).sum(1, keepdim=True)
        return ((images - grey) ** 2).flatten(1).mean(1)
