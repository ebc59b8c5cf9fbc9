"""The initial value problem of sampling, and the only step loop."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ._types import Cond, Derivative, NonFiniteError, Run, State, Time, direct
from .flow import ProbabilityFlow
from .grids import TimeGrid
from .solvers.base import History, Solver

__all__ = ["IVP", "advanced", "integrate"]


@dataclass(frozen=True, eq=False)
class IVP:
    """dz/dtau = velocity(z), from `initial` at grid[0] to grid[-1].

    Args:
        flow: the vector field.
        solver: the scheme.
        grid: the instants.
        initial: z at grid[0], (batch, *shape).
        cond: what the denoiser is told.
    """

    flow: ProbabilityFlow
    solver: Solver
    grid: TimeGrid
    initial: Float[Tensor, "batch *shape"]
    cond: Cond

    @property
    def calls(self) -> int:
        """Evaluations of the velocity that sampling takes."""
        return self.solver.calls(len(self.grid))

    def velocity(self, time: Time, z: Tensor, run: Run = direct) -> Tensor:
        """The flow's velocity for this conditioning, checked for NaN and infinity."""
        slope = self.flow.velocity(z, time, self.cond, run)
        if not bool(torch.isfinite(slope).all()):
            raise NonFiniteError(self._blame(slope, z, time))
        return slope

    def _blame(self, slope: Tensor, z: Tensor, time: Time) -> str:
        step = int((self.grid.times >= time.t.detach()).sum()) - 1
        what = "NaN" if bool(torch.isnan(slope).any()) else "infinity"
        given = "finite" if bool(torch.isfinite(z).all()) else "not finite either"
        return (
            f"the denoiser returned {what} at step {max(step, 0)} of {len(self.grid)} "
            f"(t = {float(time.t):g}); its input was {given}, with largest value "
            f"{float(z.detach().abs().max()):g}. Look at its weights and dtype (float16 overflows "
            "above 65504), or lower the guidance scale"
        )


def integrate(
    f: Derivative,
    state: State,
    grid: TimeGrid,
    solver: Solver,
    observe: Callable[[int, State], None] = lambda i, state: None,
) -> State:
    """Advance `state` from the grid's first instant to its last.

    Args:
        f: d state / d tau.
        observe: called with every node's number and state, the first and the last included.
    """
    return advanced(f, state, grid, solver, observe)[0]


def advanced(
    f: Derivative,
    state: State,
    grid: TimeGrid,
    solver: Solver,
    observe: Callable[[int, State], None] = lambda i, state: None,
) -> tuple[State, History]:
    """`integrate`, with the history that the last step leaves: the second state of a coupled solver."""
    history: History = ()
    observe(0, state)
    for i in range(len(grid)):
        state, history = solver.step(f, state, grid, i, history)
        observe(i + 1, state)
    return state, history
