"""Adjoints: how the gradient of a sampling is made, as a value.

An adjoint is chosen apart from the solver: `sampler.replace(adjoint=Checkpointed())`. All of them
return the same sample; they differ in what the backward pass costs and in how true it is.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .._types import Run, Stats, direct
from ..solvers.integrate import IVP
from .model_state import ModelState
from .recompute import Blocks
from .saved_bytes import BudgetExceededError, SavedBytes, addresses

__all__ = ["Adjoint", "differentiable_inputs", "wants_gradient"]


class Adjoint(ABC):
    """A way to differentiate a sampling."""

    recomputes: bool = True
    """Whether calls are made again in the backward pass, the decoder's blocks among them."""

    @abstractmethod
    def solve(self, ivp: IVP, stats: Stats) -> Tensor:
        """z at the clean end, with whatever graph this adjoint gives it; fills `stats` as it goes.

        Raises:
            InputError: a gradient is asked for that this adjoint cannot give.
            NonFiniteError: the denoiser returned NaN or infinity; the message names the step.
        """

    def decode(
        self,
        decode: Callable[[Tensor, Run], Any],
        latents: Tensor,
        weights: list[Tensor],
        stats: Stats,
        limit: float = math.inf,
    ) -> Any:
        """The picture of latents; `decode` hands its blocks to the policy it is given.

        BudgetExceededError ends it as soon as more than `limit` bytes are saved for the backward pass.

        Recomputing block by block, not as a whole: a decoder's peak is far above a denoiser's, and
        only its blocks' inputs need to outlive it.
        """
        blocks = Blocks(weights, limit)
        wanted = torch.is_grad_enabled() and (
            latents.requires_grad or any(weight.requires_grad for weight in weights)
        )
        if not wanted:
            return decode(latents, direct)
        with SavedBytes(addresses(weights), limit) as outside:
            image = decode(latents, blocks if self.recomputes else direct)
        stats.measured &= outside.bytes is not None
        needed = (outside.bytes or 0) + blocks.largest
        if needed > limit:
            raise BudgetExceededError(needed)
        stats.decoder += needed
        return image

    def guard(
        self,
        out: Tensor,
        modules: Mapping[str, nn.Module],
        tensors: Mapping[str, Tensor],
        restored: frozenset[str] = frozenset(),
    ) -> None:
        """See to it that a backward pass through `out` finds what the forward pass ran: see `ModelState`.

        Raises:
            RecomputationError: in the backward pass, naming what changed.
        """
        if self.recomputes and out.requires_grad:
            ModelState(modules, tensors, restored).follow(out)

    def decoder_allowance(self, ivp: IVP) -> float | None:
        """Bytes that the decoder's backward pass may take beside the states; None for an adjoint without a plan."""
        return None


def differentiable_inputs(ivp: IVP) -> Iterator[Tensor]:
    """Every tensor of the problem that wants a gradient: noise, conditioning, weights, times."""
    for tensor in (ivp.initial, *ivp.cond.values(), *ivp.flow.denoiser.parameters(), ivp.grid.times):
        if tensor.requires_grad:
            yield tensor


def wants_gradient(ivp: IVP) -> bool:
    """Whether this sampling will be differentiated at all."""
    return torch.is_grad_enabled() and next(differentiable_inputs(ivp), None) is not None
