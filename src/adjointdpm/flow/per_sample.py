"""Numbers of each sample of a batch, (batch,), beside the tensors that they belong to, (batch, *shape)."""

from collections.abc import Sequence

import torch
from torch import Tensor, where

__all__ = ["chosen", "dot", "normal_rows", "norms", "widened"]


def widened(numbers: Tensor, x: Tensor) -> Tensor:
    """Return one number for each sample in a shape that multiplies x.

    Args:
        numbers: (batch,), or truth values.
        x: (batch, *shape).

    Returns:
        the numbers, (batch, 1, ..., 1).
    """
    return numbers.view(-1, *[1] * (x.ndim - 1))


def chosen(mask: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Return the samples of a where the mask is true, and of b elsewhere.

    Args:
        mask: truth values, (batch,), on any device.
        a: (batch, *shape).
        b: like a.

    Returns:
        (batch, *shape).
    """
    return where(widened(mask, a).to(a.device), a, b)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the inner product of each sample, (batch,).

    Args:
        a: (batch, *shape).
        b: like a.
    """
    return (a * b).flatten(1).sum(1)


def norms(x: Tensor) -> Tensor:
    """Return the norm of each sample, at least 1e-12, in a shape that multiplies x or divides it.

    Args:
        x: (batch, *shape).

    Returns:
        (batch, 1, ..., 1).
    """
    return widened(x.flatten(1).norm(dim=1).clamp(min=1e-12), x)


def normal_rows(seeds: Sequence[int], like: Tensor) -> Tensor:
    """Draw standard normal noise on the CPU, one row a seed; a row does not depend on the others.

    Args:
        seeds: n of them.
        like: (batch, *shape), whose shape without the batch, dtype and device the rows take.

    Returns:
        (n, *shape).
    """
    draws = [torch.Generator().manual_seed(seed) for seed in seeds]
    rows = [torch.randn(like.shape[1:], generator=draw, dtype=like.dtype) for draw in draws]
    return torch.stack(rows).to(like.device)
