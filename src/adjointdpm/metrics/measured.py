"""The metric of an inverse problem: how far the measurement of an image is from a given one.

    y = A(x) + sigma n            L(x) = mean of (A(x) - y)^2 / (2 sigma^2)

It is the negative log-likelihood of Gaussian noise for each number measured, up to a constant.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .._types import InputError, in_range
from .base import AnyImages, Values, Weighable
from .operators import Operator

__all__ = ["Measured"]


@dataclass(frozen=True, eq=False)
class Measured(Weighable):
    """Distance of an image's measurement from a given measurement, in units of the noise.

        L(x) = mean over what is measured of (A(x) - y)^2 / (2 sigma^2)

    It is 0.5 where what is left is noise of the deviation sigma. Use it for inverse problems: `tasks.solve`, or `guide`
    with other metrics beside it.

    Args:
        operator: A, a differentiable function of images; those of `metrics.operators`, or your own.
        y: the measurement, (batch, ...) or (1, ...) for one that all images share.
        sigma: the standard deviation of the measurement's noise, above 0; where there is none, how exactly it is met.

    Raises:
        InputError: sigma is not positive, or y is not finite; when called, an output of the operator that does not fit
            the measurement.

    References:
        Chung et al., 2022, arXiv 2209.14687.

    Examples:
        >>> import torch
        >>> from adjointdpm.metrics import Measured
        >>> from adjointdpm.metrics.operators import Grayscale
        >>> metric = Measured(Grayscale(), torch.zeros(1, 1, 8, 8), sigma=0.5)
        >>> metric(torch.ones(1, 3, 8, 8)).round(decimals=4).tolist()
        [2.0]
    """

    operator: Operator
    y: Tensor
    sigma: float = 0.05

    def __post_init__(self) -> None:
        in_range("sigma", self.sigma, 0, open_low=True)
        if not bool(torch.isfinite(self.y).all()):
            raise InputError("the measurement y holds NaN or infinity")

    def residual(self, images: AnyImages) -> Tensor:
        """Return A(x) - y, (batch, ...).

        Args:
            images: (batch, channels, height, width), in [0, 1].

        Raises:
            InputError: the operator's output does not fit the measurement.
        """
        found = self.operator(images)
        if found.shape[1:] != self.y.shape[1:] or len(self.y) not in (1, len(found)):
            raise InputError(
                f"the operator gives {tuple(found.shape)} of these images, but the measurement y is "
                f"{tuple(self.y.shape)}; give a y of (1 or batch, ...) of the same shape, or another operator"
            )
        return found - self.y.to(found)

    def __call__(self, images: AnyImages) -> Values:
        return self.residual(images).square().flatten(1).mean(1) / (2 * self.sigma**2)
