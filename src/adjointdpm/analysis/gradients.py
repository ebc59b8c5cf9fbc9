"""The gradient of a metric on the finished image, with every check made before the long work.

A metric is any differentiable callable from images (batch, 3, height, width) to one value an image.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .._types import Cond, InputError
from ..metrics.base import Metric
from ..metrics.check import check_metric, score
from ..samplers.base import Sampler

__all__ = ["Gradients", "gradients"]


@dataclass(frozen=True, eq=False)
class Gradients:
    """A metric's values and what it wants of each variable.

    values     (batch,), the metric of each image
    images     (batch, 3, height, width), the images, not clamped
    variables  by name: "noise", the names of the conditioning, "weights" (all of them in one vector)
    """

    values: Tensor
    images: Tensor
    variables: dict[str, Tensor]


def gradients(
    sampler: Sampler,
    metric: Metric,
    noise: Tensor,
    cond: Cond,
    variables: Sequence[str] = ("noise",),
) -> Gradients:
    """d sum(metric) / d variable, in one backward pass through the sampler.

    Args:
        sampler: makes the images and decides how the gradient is made.
        metric: one value an image.
        noise: (batch, *shape).
        cond: the conditioning.
        variables: among "noise", the names in `cond`, and "weights": those of the sampler that require
            a gradient. Inputs are copied; nothing is written to `.grad`.

    Raises:
        InputError: an unknown variable, no trainable weights, a metric that cannot be differentiated, or
            a gradient that the sampler's adjoint does not make.
    """
    cond = sampler.with_guidance(cond)
    unknown = sorted(set(variables) - {"noise", "weights", *cond.differentiable})
    if unknown or not variables:
        known = ", ".join(["noise", *cond.differentiable, "weights"])
        raise InputError(f"variables are some of {known}, but {list(variables)} was given")
    weights = trainable(sampler) if "weights" in variables else []
    check_metric(metric, sampler.image_shape, len(noise), noise)
    noise = noise.detach().requires_grad_("noise" in variables)
    cond = Cond({name: t.detach().requires_grad_(name in variables) for name, t in cond.items()})
    images = sampler(noise, cond)
    values = score(metric, images)
    named = {"noise": [noise], **{name: [t] for name, t in cond.items()}, "weights": weights}
    leaves = [tensor for name in variables for tensor in named[name]]
    found = iter(torch.autograd.grad(values.sum(), leaves, materialize_grads=True))
    by_name = {}
    for name in variables:
        parts = [next(found) for _ in named[name]]
        by_name[name] = torch.cat([p.flatten() for p in parts]) if name == "weights" else parts[0]
    return Gradients(values.detach(), images.detach(), by_name)


def trainable(module: nn.Module) -> list[Tensor]:
    """The weights of a module that require a gradient, or an error if there are none."""
    weights: list[Tensor] = [p for p in module.parameters() if p.requires_grad]
    if not weights:
        raise InputError(
            "no weight requires a gradient; call requires_grad_() on the network that is to be trained"
        )
    return weights
