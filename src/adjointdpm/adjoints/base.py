"""Adjoints: the methods that compute the gradient of a sampling, as values.

The adjoint is chosen independently of the solver: `sampler.replace(adjoint=Checkpointed())`. All adjoints return the
same sample. They differ in the cost and in the accuracy of the backward pass.
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
    """A method to differentiate a sampling.

    Pass one to a sampler: `Checkpointed()` is exact at the memory of one denoiser call and the default; `Backprop()` is
    plain autograd; the others save time or memory at the conditions that they document. Derive from this class for a
    method of your own: implement `solve`.

    Examples:
        >>> import adjointdpm as adp
        >>> sampler = adp.load_bundled("emoji", steps=2, adjoint=adp.Backprop())
        >>> isinstance(sampler.adjoint, adp.Adjoint)
        True
    """

    recomputes: bool = True
    """Whether the backward pass recomputes calls, those of the decoder's blocks included."""

    @abstractmethod
    def solve(self, ivp: IVP, stats: Stats) -> Tensor:
        """Solve the initial value problem of a sampling, and connect its result to the graph of this adjoint.

        Args:
            ivp: the problem.
            stats: the record of the sampling, filled as it proceeds.

        Returns:
            z at the clean end, (batch, *shape).

        Raises:
            InputError: this adjoint cannot give a gradient that is required.
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
        """Decode latents; in the backward pass the decoder's blocks are recomputed one by one.

        The decoder is not recomputed as a whole, since its peak is far above a denoiser's. By blocks, only the inputs
        of the blocks are held.

        Args:
            decode: decodes latents, and executes its blocks with the policy that it receives.
            latents: (batch, *latent_shape).
            weights: the decoder's weights.
            stats: the record of the sampling, which receives the bytes.
            limit: the most bytes that may be saved for the backward pass.

        Returns:
            the result of `decode`.

        Raises:
            BudgetExceededError: more than `limit` bytes are saved; the decoding stops there.
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
        """Check in the backward pass through `out` that the model has not changed since the forward pass.

        `ModelState` lists what is compared.

        Args:
            out: the result of the forward pass.
            modules: the modules that the backward pass runs again, by name.
            tensors: the arguments that it reads again, by name.
            restored: attributes of modules that a recomputation restores, so that they may change.

        Raises:
            RecomputationError: in the backward pass; the message names the change.
        """
        if self.recomputes and out.requires_grad:
            ModelState(modules, tensors, restored).follow(out)

    def decoder_allowance(self, ivp: IVP) -> float | None:
        """Bytes that the decoder's backward pass may use besides the states; None for an adjoint without a budget."""
        return None


def differentiable_inputs(ivp: IVP) -> Iterator[Tensor]:
    """Every tensor of a problem that requires a gradient: noise, conditioning, weights, times.

    Args:
        ivp: the problem.

    Yields:
        the tensors, in this order.
    """
    for tensor in (ivp.initial, *ivp.cond.values(), *ivp.flow.denoiser.parameters(), ivp.grid.times):
        if tensor.requires_grad:
            yield tensor


def wants_gradient(ivp: IVP) -> bool:
    """Whether gradients are enabled and some input of this sampling requires a gradient."""
    return torch.is_grad_enabled() and next(differentiable_inputs(ivp), None) is not None
