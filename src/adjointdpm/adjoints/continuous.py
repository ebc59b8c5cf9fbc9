"""The paper's adjoint: the augmented ODE, solved backwards.

With a = dL/dz, f = dz/dtau and theta the weights (AdjointDPM, Pan et al., 2024, arXiv 2307.10711):

    da/dtau       = -a^T df/dz          a(end) = dL/dz(end)
    da_c/dtau     = -a^T df/dc          a_c(end) = 0
    da_theta/dtau = -a^T df/dtheta      a_theta(end) = 0

It is the gradient of the flow, not of the steps that were taken: a solver of its own takes each product at the
departure of a backward step, which is the arrival of the forward one, so that it is off by a multiple of the step
also where it has as many steps as the sampling.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from .._types import InputError, State, Time
from ..flow.grids import coarser, even_nodes
from ..solvers import Solver
from ..solvers.integrate import IVP, integrate
from .interpolation import Interpolation
from .separate_backward import SeparateBackward
from .vjp import VJP

__all__ = ["Continuous"]


@dataclass(frozen=True)
class Continuous(SeparateBackward):
    """The gradient of the flow by the augmented ODE (Pan et al., 2024, arXiv 2307.10711).

        N f + M (f + b) of time for N steps forward and M back;  N states or one, and one graph of memory

    Use it to reproduce the paper, whose release runs `Continuous(solver=Euler(), trajectory="resolved")`, and to
    compare with it. Do not use it to optimize: `Checkpointed` costs the same and is exact.

    Args:
        solver: the backward scheme; the sampler's own if None.
        steps: M >= 1, the number of backward steps, at equal fractions of the forward grid; as many as forward if
            None.
        trajectory: "stored" remembers the forward states and slopes; "resolved" is the paper's form and solves for the
            state again, backwards, in the memory of one state, which adds an error of its own and can drift far at
            high guidance.
        rescale: scale cotangents by powers of two on their way through a network in float16.

    Raises:
        InputError: bad arguments; a gradient of the time grid; a denoiser that depends on tensors captured by a
            closure, or holds sharded weights (DTensor).
        NonFiniteError: in the backward pass, naming the step.

    Examples:
        >>> import adjointdpm as adp
        >>> adp.Continuous(solver=adp.Euler(), trajectory="resolved").stored
        False
    """

    solver: Solver | None = None
    steps: int | None = None
    trajectory: Literal["stored", "resolved"] = "stored"
    rescale: bool = False

    def __post_init__(self) -> None:
        if self.steps is not None and self.steps < 1:
            raise InputError(f"steps, the backward steps, must be at least 1, but is {self.steps}")
        if self.trajectory not in ("stored", "resolved"):
            raise InputError(f'trajectory is "stored" or "resolved", but {self.trajectory!r} was given')

    @property
    def stored(self) -> bool:
        return self.trajectory == "stored"

    def check(self, ivp: IVP) -> None:
        ivp.refuse_meaningless(ivp.grid[len(ivp.grid)])  # where the backward pass begins
        if ivp.solver.drift == 1:
            return
        if not self.stored:
            raise InputError(
                f"the states of {ivp.solver!r} cannot be solved for again, since the flow backwards knows nothing "
                'of its noise; use trajectory="stored"'
            )
        if self.solver is None or self.solver.drift != 1 or self.solver.calls(1) != 1:
            raise InputError(
                "the paper's form along a noisy path needs a backward solver of one call a step, such as "
                f"solver=Euler() or AdamsBashforth(2), but got {self.solver!r}; or use CoarseAdjoint()"
            )

    def memory(self, ivp: IVP) -> Interpolation:
        return Interpolation()

    def needs_slopes(self, ivp: IVP) -> bool:
        return True

    def backward(self, ctx: Any, final: Tensor, cotangent: Tensor, leaves: list[Tensor]) -> State:
        products: VJP = ctx.products
        solver = self.solver_of(ctx.ivp)
        grid = ctx.ivp.grid.reversed()
        if self.steps is not None and self.steps != len(grid):
            noisy = ctx.ivp.solver.drift != 1  # a path with noise is known at its nodes alone
            nodes = even_nodes(ctx.ivp.grid, self.steps) if noisy else []
            grid = coarser(ctx.ivp.grid, nodes).reversed() if noisy else grid.resampled(self.steps)
        ctx.stats.backward_steps = len(grid)
        zeros = tuple(torch.zeros_like(leaf) for leaf in leaves)
        stored = self.stored

        def f(state: State, time: Time) -> State:
            z, a = (ctx.trajectory(time), state[0]) if stored else state[:2]
            slope, *pulled = products(z, time, a, leaves)
            drift = ctx.ivp.solver.drift
            return (*(() if stored else (slope,)), *(-drift * each for each in pulled))

        def observe(i: int, state: State) -> None:
            products.trace.record(state[0] if stored else state[1], grid[i])

        start = (cotangent, *zeros) if stored else (final, cotangent, *zeros)
        end = integrate(f, start, grid, solver, observe)
        return end if stored else end[1:]
