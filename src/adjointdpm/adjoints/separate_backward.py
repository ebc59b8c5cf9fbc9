"""A sampling whose backward pass is a loop of its own over stored or rebuilt states: one graph at a time.

`CoarseAdjoint` and `Continuous` share the forward pass: each evaluation is made without a graph, and what the backward
pass needs of the states is remembered. They differ in the equation that they solve backwards.
"""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .._types import State, Stats, Time
from ..solvers import Solver
from ..solvers.integrate import IVP, integrate
from .base import Adjoint, wants_gradient
from .discrete import Backprop
from .interpolation import Evaluations, Interpolation
from .vjp import VJP, Leaves

__all__ = ["SeparateBackward"]


class SeparateBackward(Adjoint):
    """An adjoint that solves an equation of its own backwards.

    Its settings are the subclasses' fields: `solver` (the sampler's own if None) and `rescale`.
    """

    solver: Solver | None
    rescale: bool

    @property
    def stored(self) -> bool:
        """Whether the forward states are remembered."""
        return True

    def solve(self, ivp: IVP, stats: Stats) -> Tensor:
        if not wants_gradient(ivp):
            return Backprop().solve(ivp, stats)  # the plain loop, and no graph to keep
        self.check(ivp)
        leaves = Leaves(ivp, type(self).__name__)
        return _Sampling.apply(self, ivp, stats, leaves, ivp.initial, *leaves.tensors)

    def solver_of(self, ivp: IVP) -> Solver:
        """The scheme of the backward pass."""
        return ivp.solver if self.solver is None else self.solver

    @abstractmethod
    def check(self, ivp: IVP) -> None:
        """Raise InputError where this adjoint cannot differentiate the sampling."""

    @abstractmethod
    def memory(self, ivp: IVP) -> Interpolation:
        """What the forward pass has to remember."""

    @abstractmethod
    def needs_slopes(self, ivp: IVP) -> bool:
        """Whether slopes are remembered besides states."""

    def prepare(self, ctx: Any) -> None:
        """Called at the end of the forward pass; what the backward pass needs goes into `ctx`."""

    @abstractmethod
    def backward(self, ctx: Any, final: Tensor, cotangent: Tensor, leaves: list[Tensor]) -> State:
        """The gradients of the initial state and of the leaves.

        Args:
            ctx: of the forward pass: `ivp`, `stats`, `products` and `trajectory`.
            final: the state at the clean end.
            cotangent: dL/dz there.
            leaves: the conditioning and weights that require a gradient.
        """


class _Sampling(torch.autograd.Function):
    """z(end) of the IVP, with a backward pass that makes one graph at a time.

    Every tensor that the result depends on is an input, and its cotangent an output: nothing is
    written to `.grad`, so hooks of wrappers such as DDP fire as for any other operation.
    """

    @staticmethod
    def forward(
        ctx: Any,
        adjoint: SeparateBackward,
        ivp: IVP,
        stats: Stats,
        leaves: Leaves,
        initial: Tensor,
        *tensors: Tensor,
    ) -> Tensor:
        products = VJP(ivp, stats, leaves, adjoint.rescale)
        ready = [products.check(initial, ivp.grid[0])]
        trajectory = adjoint.memory(ivp)
        stored = adjoint.stored
        slopes = stored and (adjoint.needs_slopes(ivp) or isinstance(trajectory, Evaluations))

        def f(state: State, time: Time) -> State:
            # The check has already made the first evaluation, which is at the first node.
            slope = ready.pop() if ready else products.velocity(state[0], time)
            products.made(state[0], time, slope)
            if slopes:
                trajectory.add_slope(slope, state[0])
            return (slope,)

        def observe(i: int, state: State) -> None:
            if stored:
                trajectory.add_state(state[0], ivp.grid[i])

        (final,) = integrate(f, (initial,), ivp.grid, ivp.solver, observe)
        ctx.adjoint, ctx.ivp, ctx.stats = adjoint, ivp, stats
        ctx.products, ctx.trajectory = products, trajectory
        ctx.save_for_backward(initial, final, *tensors)
        stats.states = final.nbytes + (trajectory.nbytes or initial.nbytes)
        adjoint.prepare(ctx)
        return final

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        initial, final, *leaves = ctx.saved_tensors
        found = ctx.adjoint.backward(ctx, final, cotangent, leaves)
        ctx.products.probe(initial)
        return None, None, None, None, *found
