"""A gradient checked by a finite difference of the whole sampler, which knows nothing of adjoints.

    d_h = (L(v + h d) - L(v - h d)) / 2h,     (4 d_{h/2} - d_h) / 3 has an error of h^4

The direction d is half the gradient's own and half random, so that neither its size nor a part that it
lacks goes unnoticed. Of a ladder of steps h the one is taken where two neighbours agree best: above it the
function is not straight, below it rounding rules.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ._types import Cond, NonFiniteError
from .comparison import Check
from .gradients import Metric, trainable
from .sampler import Sampler

__all__ = ["finite_difference"]

LADDER = [2.0**-k for k in range(2, 11)]
"""Steps, in units of the variable's norm (times 0.1)."""


def finite_difference(
    sampler: Sampler, metric: Metric, noise: Tensor, cond: Cond, variable: str, gradient: Tensor
) -> Check:
    """The gradient of one variable against the difference quotient along one direction; 18 samplings.

    Args:
        sampler, metric, noise, cond: as in `gradients`.
        variable: "noise", a name of the conditioning, or "weights".
        gradient: what is checked, in the variable's shape (weights: all in one vector).
    Raises:
        NonFiniteError: the metric is not finite near the point.
    """
    generator = torch.Generator().manual_seed(0)
    random = torch.randn(gradient.shape, generator=generator, dtype=torch.float64).to(gradient.device)
    g = gradient.double()
    way = g / g.norm().clamp(min=1e-300) + random / random.norm()
    way = way / way.norm()
    point = {"noise": [noise], "weights": trainable(sampler) if variable == "weights" else []}
    leaves = point.get(variable) or [cond[variable]]
    unit = 0.1 * float(sum(leaf.detach().double().square().sum() for leaf in leaves)) ** 0.5 or 0.1
    quotients = []
    for step in LADDER:
        h = step * unit
        up, down = (
            _moved(sampler, metric, noise, cond, variable, leaves, way, sign * h) for sign in (1, -1)
        )
        quotients.append((up - down) / (2 * h))
    if not all(map(_finite, quotients)):
        raise NonFiniteError("the metric is not finite near the point where its gradient is checked")
    better = [(4 * fine - coarse) / 3 for coarse, fine in pairwise(quotients)]
    gaps = [abs(a - b) for a, b in pairwise(better)]
    best = min(range(len(gaps)), key=gaps.__getitem__)
    return Check(variable, float((g * way).sum()), better[best + 1], gaps[best])


def _finite(number: float) -> bool:
    return abs(number) < float("inf")


def _moved(
    sampler: Sampler,
    metric: Metric,
    noise: Tensor,
    cond: Cond,
    variable: str,
    leaves: Sequence[Tensor],
    way: Tensor,
    h: float,
) -> float:
    """The metric's sum with one variable moved by h along `way`; weights are put back to the bit."""
    parts = way.flatten().split([leaf.numel() for leaf in leaves])
    before = [leaf.detach().clone() for leaf in leaves]
    moved = [b + (h * part).view_as(b).to(b.dtype) for b, part in zip(before, parts, strict=True)]
    with torch.no_grad():
        if variable == "weights":
            for leaf, value in zip(leaves, moved, strict=True):
                leaf.copy_(value)
        try:
            at = moved[0] if variable == "noise" else noise
            conditioned = cond.replace(**{variable: moved[0]}) if variable in cond else cond
            return float(metric(sampler(at, conditioned)).double().sum())
        finally:
            if variable == "weights":
                for leaf, value in zip(leaves, before, strict=True):
                    leaf.copy_(value)
