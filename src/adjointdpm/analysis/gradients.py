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
from ..metrics.frames import for_medium
from ..samplers.base import Sampler

__all__ = ["Gradients", "gradients"]


@dataclass(frozen=True, eq=False)
class Gradients:
    """The result of `gradients`: a metric's values, the images, and the gradient of each variable.

    Args:
        values: the metric of each image, (batch,).
        images: the images, (batch, 3, height, width), not clamped.
        variables: the gradients by name: "noise" and the names of the conditioning, each in the variable's shape,
            and "weights", all of them in one vector.
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
    """Compute the gradient of a metric with respect to some variables, in one backward pass through the sampler.

        g_v = d sum_i L(x_i) / d v          for each variable v

    Every check is made before the sampling. Inputs are copied, and nothing is written to `.grad`. In a training loop
    of your own, call the sampler and `backward()` instead.

    Args:
        sampler: the sampler; its adjoint decides how the gradient is made.
        metric: a function L from images (batch, 3, height, width) to one value an image, (batch,). Where the sampler
            makes videos, its mean over frames is differentiated, or a `metrics.WholeVideo`; where it makes sound, a
            function of waveforms (batch, channels, samples).
        noise: (batch, *shape).
        cond: the conditioning.
        variables: some of "noise", the names in `cond`, and "weights", which are all weights of the sampler that
            require a gradient.

    Returns:
        the metric's values, the images and the gradients.

    Raises:
        InputError: a variable is unknown, no weight is trainable, the metric fails or has no gradient, or the
            sampler's adjoint does not make the gradient of a variable.
        NonFiniteError: the metric is NaN or infinite.

    Examples:
        >>> import adjointdpm as adp
        >>> sampler = adp.load_bundled("emoji", steps=2)
        >>> noise, cond = sampler.noise(1, seed=0), sampler.encode("a red apple")
        >>> found = adp.gradients(sampler, adp.metrics.Chroma(), noise, cond, ("noise", "guidance_scale"))
        >>> found.variables["noise"].shape == noise.shape
        True
    """
    cond = sampler.with_guidance(cond)
    unknown = sorted(set(variables) - {"noise", "weights", *cond.differentiable})
    if unknown or not variables:
        known = ", ".join(["noise", *cond.differentiable, "weights"])
        raise InputError(f"variables are some of {known}, but {list(variables)} was given")
    weights = trainable(sampler) if "weights" in variables else []
    metric = for_medium(metric, sampler.medium)
    check_metric(metric, sampler.output_shape, len(noise), noise)
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
    """Return the weights of a module that require a gradient.

    Args:
        module: the module.

    Returns:
        the weights, in the order of `module.parameters()`; at least one.

    Raises:
        InputError: no weight requires a gradient.
    """
    weights: list[Tensor] = [p for p in module.parameters() if p.requires_grad]
    if not weights:
        raise InputError(
            "no weight requires a gradient; call requires_grad_() on the network that is to be trained"
        )
    return weights
