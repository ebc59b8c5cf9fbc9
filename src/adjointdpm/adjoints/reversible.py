"""Exact gradients without stored states: a reversible solver is run backwards to its start.

For one step of `Coupled` from the arrival node to the departure node, with bars for cotangents:

    w  = w' + Psi_{-h}(y')         y_bar <- y_bar' - (dPsi_{-h}/dy')^T w_bar'
    y  = (y' - (1 - c) w - Psi_h(w)) / c
    w_bar = w_bar' + (1 - c) y_bar + (dPsi_h/dw)^T y_bar,     y_bar <- c y_bar

Each Psi is evaluated once, for its value and its vector-Jacobian products (McCallum and Foster, 2024, arXiv
2410.11648).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .._types import Derivative, DriftError, InputError, State, Stats, Time
from ..solvers import Coupled
from ..solvers.integrate import IVP, advanced
from .base import Adjoint, wants_gradient
from .discrete import Backprop
from .vjp import VJP, Leaves

__all__ = ["Reversible"]


@dataclass(frozen=True)
class Reversible(Adjoint):
    """The exact gradient of a `Coupled` sampler, whose states are rebuilt in the backward pass.

        memory: 2 states + 1 graph a stage;     time: 2 s N f + 2 s N (f + b), s the inner solver's stages

    Use it where even one stored latent a step is too much: for long trajectories and large latents. Otherwise
    `Checkpointed` costs half, works with every solver and has no drift. Where the flow contracts, its inverse expands,
    and amplifies rounding. So the rebuilt start is compared with the true one.

    Args:
        tolerance: the largest |y_0 rebuilt - y_0| / |y_0| that is accepted, above 0. `stats.drift` reports the value.

    Raises:
        InputError: the sampler's solver is not `Coupled`; the tolerance is not positive; a gradient of the time grid; a
            denoiser that depends on captured tensors, or holds sharded weights (DTensor).
        DriftError: in the backward pass, if the tolerance is exceeded, since the gradient would be wrong.

    References:
        McCallum and Foster, 2024, arXiv 2410.11648.

    Examples:
        >>> import adjointdpm as adp
        >>> sampler = adp.load_bundled("emoji", steps=2, solver=adp.Coupled(adp.Euler()), adjoint=adp.Reversible())
        >>> noise = sampler.noise(1).double().requires_grad_()
        >>> sampler(noise, sampler.encode("a cat")).mean().backward()
        >>> sampler.stats.drift < 1e-6
        True
    """

    tolerance: float = 1e-2

    def __post_init__(self) -> None:
        if not self.tolerance > 0:
            raise InputError(f"tolerance must be a positive number, but is {self.tolerance}")

    def solve(self, ivp: IVP, stats: Stats) -> Tensor:
        if not isinstance(ivp.solver, Coupled):
            raise InputError(
                f"Reversible() needs a reversible solver, but the sampler's is {ivp.solver!r}; use "
                "solver=Coupled(Euler()), another one-step solver inside Coupled, or Checkpointed()"
            )
        if ivp.solver.second is not None:
            raise InputError(
                "Reversible() is for a sampling whose two copies start as one; use Checkpointed() with the second copy "
                "of invert_coupled"
            )
        if not wants_gradient(ivp):
            return Backprop().solve(ivp, stats)
        leaves = Leaves(ivp, "Reversible")
        return _Reversed.apply(self, ivp, stats, leaves, ivp.initial, *leaves.tensors)


class _Reversed(torch.autograd.Function):
    """The end state y of a coupled solver; the graph holds the two states there and the start alone."""

    @staticmethod
    def forward(
        ctx: Any,
        adjoint: Reversible,
        ivp: IVP,
        stats: Stats,
        leaves: Leaves,
        initial: Tensor,
        *tensors: Tensor,
    ) -> Tensor:
        products = VJP(ivp, stats, leaves)
        ready = [products.check(initial, ivp.grid[0])]

        def f(state: State, time: Time) -> State:
            slope = ready.pop() if ready else products.velocity(state[0], time)
            products.made(state[0], time, slope)
            return (slope,)

        (y,), (w,) = advanced(f, (initial,), ivp.grid, ivp.solver)
        ctx.adjoint, ctx.ivp, ctx.stats, ctx.products = adjoint, ivp, stats, products
        ctx.save_for_backward(initial, y, w, *tensors)
        stats.states = initial.nbytes + y.nbytes + w.nbytes
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        initial, y, w, *leaves = ctx.saved_tensors
        ivp, trace = ctx.ivp, ctx.products.trace
        solver: Coupled = ivp.solver
        c = solver.coupling
        y_bar, w_bar = cotangent, torch.zeros_like(cotangent)
        sums = [torch.zeros_like(leaf) for leaf in leaves]

        def pulled(z: Tensor, bar: Tensor, i: int, backwards: bool) -> tuple[Tensor, Tensor]:
            """Psi at z and its product with `bar`; the products with the leaves are added to `sums`."""

            def psi(f: Derivative, z: Tensor) -> Tensor:
                return solver.increment(f, (z,), ivp.grid, i, backwards)[0]

            value, through, *shares = ctx.products.through(psi, z, ivp.grid[i], bar, leaves)
            for total, share in zip(sums, shares, strict=True):
                total += share
            return value, through

        for i in reversed(range(len(ivp.grid))):
            trace.record(y_bar, ivp.grid[i + 1])
            psi, through = pulled(y, -w_bar, i, backwards=True)
            w, y_bar = w + psi, y_bar + through
            psi, through = pulled(w, y_bar, i, backwards=False)
            y, w_bar = solver.rebuilt(y, w, psi), w_bar + (1 - c) * y_bar + through
            y_bar = c * y_bar
        a = y_bar + w_bar  # both copies start as the same state
        trace.record(a, ivp.grid[0])
        ctx.stats.drift = float((y - initial).norm() / initial.norm())
        if not ctx.stats.drift <= ctx.adjoint.tolerance:
            raise DriftError(
                f"the start rebuilt by Reversible() differs from the true one by {ctx.stats.drift:.1e} of its norm, "
                f"and the tolerance is {ctx.adjoint.tolerance:g}; the gradient would be wrong. "
                "Use float64 noise, fewer steps, a coupling nearer to 1, or Checkpointed()"
            )
        return None, None, None, None, a, *sums
