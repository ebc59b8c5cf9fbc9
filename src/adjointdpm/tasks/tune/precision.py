"""Training a network of half precision: float32 weights, and gradients that float16 does not round to zero.

    W = half(M)                        M the float32 master weight, which the optimizer changes
    grad_M = (1 / S) grad_M (S L)      S a power of two, so that scaling by it is exact

A step of Adam is about as long as its learning rate, which a bfloat16 weight of 1 rounds to nothing below 0.004. In
a float16 network, entries of a cotangent below 6e-8 would be zero; the mean over an image's pixels makes such ones.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..._types import NonFiniteError

__all__ = ["HALF", "Master", "master_of", "scaled"]

HALF = (torch.float16, torch.bfloat16)
SCALES = [2.0**16, 2.0**12, 2.0**8, 2.0**4, 1.0]


class Master(nn.Module):
    """A parametrization of a weight in half precision by its float32 master."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.master = nn.Parameter(weight.detach().float())

    def forward(self, weight: Tensor) -> Tensor:
        return self.master.to(weight.dtype)


def master_of(network: nn.Module, weight: Tensor) -> Tensor:
    """Return the float32 master that is now in front of a weight, wherever the network has it."""
    made = Master(weight)
    weight.requires_grad_(False)  # pyright: ignore[reportUnusedCallResult]
    places = [
        (module, name)
        for module in network.modules()
        for name, each in module._parameters.items()
        if each is weight
    ]
    for module, name in places:
        parametrize.register_parametrization(module, name, made)
    return made.master


def scaled(values: Tensor, leaves: Sequence[Tensor], network: nn.Module) -> Tensor:
    """Return the losses; where the network has float16 weights, their gradient is taken of S times them.

    S begins at 2^16 and is lowered until nothing overflows.

    Raises:
        NonFiniteError: in the backward pass, if the gradient is not finite for any S.
    """
    if not values.requires_grad or all(weight.dtype != torch.float16 for weight in network.parameters()):
        return values
    # The graph goes in as a tuple, which autograd does not look into: the backward pass below is its only one.
    return _Scaled.apply((values,), *leaves)  # type: ignore[no-any-return]


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, graph: tuple[Tensor], *leaves: Tensor) -> Tensor:
        (ctx.values,), ctx.leaves = graph, leaves
        return ctx.values.detach().clone()

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        for scale in SCALES:
            found = torch.autograd.grad(
                ctx.values, ctx.leaves, scale * cotangent, allow_unused=True, retain_graph=True
            )
            if all(bool(torch.isfinite(each).all()) for each in found if each is not None):
                return None, *(None if each is None else each / scale for each in found)
        raise NonFiniteError(
            "the weights' gradient overflows float16 at every scale of the loss; use bf16 or no mixed precision"
        )
