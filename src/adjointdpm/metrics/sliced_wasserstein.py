"""Distance of the distributions of an image's features, wherever they are, from those of one reference image.

    q_d(x)  = the values <theta_d, F(x)_j> over all places j, sorted          theta_d random unit vectors
    L(x)    = mean_l mean_d  mean_j (q_dj(x) - q_dj(r))^2 / Var_j q_dj(r)     r the reference image, l the layers

The squared Wasserstein distance of two distributions on a line is the mean squared difference of their sorted values,
so that L is an average of it over projections. It is 0 where the distributions agree, while Gram matrices agree for
many others. Bonneel, Rabin, Peyre and Pfister, 2015 (Journal of Mathematical Imaging and Vision 51); as a loss for
textures Heitz, Vanhoey, Chambon and Belcour, 2021, arXiv 2006.07229; of patches Elnekave and Weiss, 2022, arXiv
2203.11862.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from .._types import InputError
from .base import AnyImages, Values, Weighable
from .effects import gaussian
from .style_content import Features

__all__ = ["SlicedWasserstein", "patches_and_details"]

ROUNDING = (1 / 255) ** 2 / 12
"""Variance of rounding to 8 bits: a projection that varies less holds nothing to compare with."""


def patches_and_details(images: AnyImages) -> list[Tensor]:
    """Return patches of 3 x 3 pixels, and details at two scales: colors, edges and sharpness without a network.

        F_1(x)_j = the 27 values of the patch at place j
        F_2(x)_j = (x - G x, G x - G' x) at place j          G, G' Gaussians of 0.8 and 1.6 pixels

    Args:
        images: (batch, 3, height, width), in [0, 1]; both sides at least 3.

    Returns:
        (batch, 27, height - 2, width - 2), and (batch, 6, height, width).

    Raises:
        InputError: the images are smaller, or do not have 3 channels.

    Examples:
        >>> import torch
        >>> import adjointdpm as adp
        >>> [tuple(each.shape) for each in adp.metrics.patches_and_details(torch.zeros(1, 3, 8, 8))]
        [(1, 27, 6, 6), (1, 6, 8, 8)]
    """
    height, width = images.shape[-2:]
    if images.shape[1] != 3 or min(height, width) < 3:
        raise InputError(
            f"patches are of 3 x 3 pixels of 3 channels, but the images are {tuple(images.shape[1:])}"
        )
    patches = functional.unfold(images, 3).unflatten(2, (height - 2, width - 2))
    fine, coarse = gaussian(images, 0.8), gaussian(images, 1.6)
    return [patches, torch.cat([images - fine, fine - coarse], 1)]


@dataclass(frozen=True, eq=False)
class SlicedWasserstein(Weighable):
    """Distance of the distributions of features from those of one reference image; see the head of this module.

    Use it where one image shows a visual effect: it holds no places, so that it does not depend on where the content
    is, but the colors and edges that the content itself has do count. Choose a reference on a background like that of
    the images, and add `Content` to keep the content. Unlike `Style` with a classifier's features it needs no network,
    and it has its minimum only where whole distributions agree: a token that was learned from the Gram matrices of one
    network reached a lower value than the effect itself does, by images without the effect.

    Args:
        reference: the reference image r, (3, height, width), in [0, 1]. If it has another size than the images, its
            sorted values are interpolated.
        features: a function from images to feature maps, (batch, channels, height, width) each.
        directions: number of random directions, at least 1.
        seed: of the directions.

    Raises:
        InputError: the reference has another shape, or there is no direction.

    References:
        Bonneel, Rabin, Peyre and Pfister, 2015, Journal of Mathematical Imaging and Vision 51. Heitz, Vanhoey, Chambon
        and Belcour, 2021, arXiv 2006.07229.

    Examples:
        >>> import torch
        >>> import adjointdpm as adp
        >>> reference = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))
        >>> metric = adp.metrics.SlicedWasserstein(reference)
        >>> metric(reference[None]).tolist()
        [0.0]
    """

    reference: Tensor
    features: Features = field(default=patches_and_details)
    directions: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        if self.reference.ndim != 3 or len(self.reference) != 3:
            raise InputError(f"a reference is (3, height, width), but is {tuple(self.reference.shape)}")
        if self.directions < 1:
            raise InputError(f"at least one direction is needed, but there are {self.directions}")

    def __call__(self, images: AnyImages) -> Values:
        with torch.no_grad():
            wanted = self.features(self.reference.to(images)[None])
        generator, parts = torch.Generator().manual_seed(self.seed), []
        for ours, theirs in zip(self.features(images), wanted, strict=True):
            theta = torch.randn(self.directions, theirs.shape[1], generator=generator, dtype=torch.float64)
            theta = functional.normalize(theta, dim=1).to(ours)
            found, goal = _sorted(theta, ours), _sorted(theta, theirs)
            scale = goal.var(2, correction=0).clamp(min=ROUNDING)
            if goal.shape[2] != found.shape[2]:
                goal = functional.interpolate(goal, size=found.shape[2], mode="linear", align_corners=True)
            parts.append(((found - goal).square().mean(2) / scale).mean(1))
        return torch.stack(parts).mean(0)


def _sorted(theta: Tensor, features: Tensor) -> Tensor:
    """Return the sorted projections, (batch, directions, places)."""
    return (theta @ features.flatten(2)).sort(2).values
