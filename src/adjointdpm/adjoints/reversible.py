"""Exact gradients without stored states: a reversible solver is run back to where it began.

For one step of `Coupled`, with bars for cotangents, from the arrival node to the departure node:

    w  = w' + Psi_{-h}(y')         y_bar <- y_bar' - (dPsi_{-h}/dy')^T w_bar'
    y  = (y' - (1 - c) w - Psi_h(w)) / c
    w_bar = w_bar' + (1 - c) y_bar + (dPsi_h/dw)^T y_bar,     y_bar <- c y_bar

Each Psi is evaluated once, for its value and its products (McCallum and Foster, 2024, arXiv 2410.11648).
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
    """The exact gradient of a `Coupled` sampler, its states rebuilt on the way back.

        2 states + 1 graph a stage of memory;  2 s N f + 2 s N (f + b) of time, s the inner solver's stages

    Use it where even one stored latent a step is too much: long trajectories, large latents. Otherwise
    `Checkpointed` costs half, works with every solver and has no drift. Where the flow contracts, running
    back expands, rounding with it; so the state it comes back to is compared with the one it began with.

    Args:
        tolerance: the largest |y_0 rebuilt - y_0| / |y_0| that is accepted. `stats.drift` has the figure.
    Raises:
        InputError: the sampler's solver is not `Coupled`; what `Continuous` refuses.
        DriftError: in the backward pass, when the tolerance is passed: the gradient would be wrong.
    """

    tolerance: float = 1e-2

    def __post_init__(self) -> None:
        if not self.tolerance > 0:
            raise InputError(f"tolerance is a positive number, but is {self.tolerance}")

    def solve(self, ivp: IVP, stats: Stats) -> Tensor:
        if not isinstance(ivp.solver, Coupled):
            raise InputError(
                f"Reversible() needs a reversible solver, but the sampler's is {ivp.solver!r}; use "
                "solver=Coupled(Euler()) or another one-step solver inside, or Checkpointed()"
            )
        if not wants_gradient(ivp):
            return Backprop().solve(ivp, stats)
        leaves = Leaves(ivp, "Reversible")
        return _Reversed.apply(self, ivp, stats, leaves, ivp.initial, *leaves.tensors)


class _Reversed(torch.autograd.Function):
    """y(end) of a coupled solver; only the two states there, and the start's, are held."""

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
        ready = [products.check(ivp.grid[0], initial)]

        def f(time: Time, state: State) -> State:
            slope = ready.pop() if ready else ivp.velocity(time, state[0], products.run)
            products.made(time, state[0], slope)
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
            """Psi at z and its product with `bar`; the leaves' shares are added up."""

            def psi(f: Derivative, z: Tensor) -> Tensor:
                return solver.increment(f, (z,), ivp.grid, i, backwards)[0]

            value, through, *shares = ctx.products.through(psi, ivp.grid[i], z, bar, leaves)
            for total, share in zip(sums, shares, strict=True):
                total += share
            return value, through

        for i in reversed(range(len(ivp.grid))):
            trace.record(ivp.grid[i + 1], y_bar)
            psi, through = pulled(y, -w_bar, i, backwards=True)
            w, y_bar = w + psi, y_bar + through
            psi, through = pulled(w, y_bar, i, backwards=False)
            y, w_bar = solver.rebuilt(y, w, psi), w_bar + (1 - c) * y_bar + through
            y_bar = c * y_bar
        a = y_bar + w_bar  # both copies began as the same state
        trace.record(ivp.grid[0], a)
        ctx.stats.drift = float((y - initial).norm() / initial.norm())
        if not ctx.stats.drift <= ctx.adjoint.tolerance:
            raise DriftError(
                f"the states rebuilt by Reversible() came back {ctx.stats.drift:.1e} away from their start, "
                f"relative to it, where {ctx.adjoint.tolerance:g} is accepted; the gradient would be wrong. "
                "Use float64 noise, fewer steps, a coupling nearer to 1, or Checkpointed()"
            )
        return None, None, None, None, a, *sums
