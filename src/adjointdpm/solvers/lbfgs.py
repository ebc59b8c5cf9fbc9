"""The move of L-BFGS: an approximate inverse Hessian times a gradient, for each sample of a batch by itself.

    s_k = u_k - u_{k-1},     y_k = g_k - g_{k-1}          H y_k = s_k for the last pair

Nocedal, 1980, Mathematics of Computation 35.
"""

import torch
from torch import Tensor

from ..flow.per_sample import dot, widened

__all__ = ["Pair", "lbfgs_move"]

Pair = tuple[Tensor, Tensor]


def lbfgs_move(gradient: Tensor, pairs: list[Pair], length: Tensor) -> Tensor:
    """Return H g by the two loops of L-BFGS, for each sample by itself.

    Args:
        gradient: g, (batch, *shape).
        pairs: moves s and differences of gradients y, each (batch, *shape), the oldest first. A pair with s.y <= 0 is
            not used.
        length: H of a sample without a pair, (batch,); others begin with s.y / y.y of their last one.

    Returns:
        the move, (batch, *shape).
    """
    q, coefficients = gradient, list[Tensor]()
    curvatures = [dot(s, y) for s, y in pairs]
    inverses = [torch.where(each > 0, 1 / each.clamp(min=1e-30), 0.0) for each in curvatures]
    for (s, y), inverse in zip(reversed(pairs), reversed(inverses), strict=True):
        coefficients.append(inverse * dot(s, q))
        q = q - widened(coefficients[-1], q) * y
    for (_, y), curvature in zip(pairs, curvatures, strict=True):
        length = torch.where(curvature > 0, curvature / dot(y, y).clamp(min=1e-30), length)
    q = widened(length, q) * q
    for (s, y), inverse, coefficient in zip(pairs, inverses, reversed(coefficients), strict=True):
        q = q + widened(coefficient - inverse * dot(y, q), q) * s
    return q
