"""Explicit Runge-Kutta methods, each a Butcher tableau.

    k_j = f(tau_i + c_j h, z_i + h sum_l a_jl k_l),     z_{i+1} = z_i + h sum_j b_j k_j

Stages between nodes are evaluated at their true times, the inverse of tau, never at the nearest
training step. A step that ends at sigma = 0 is an Euler step: its other stages would lie where no network was trained.
"""

from dataclasses import dataclass
from typing import ClassVar

from .._types import Derivative, State
from ..flow.grids import TimeGrid
from .base import History, Solver, combine, ends_clean

__all__ = ["RK4", "Euler", "Heun", "Midpoint", "RungeKutta"]


class RungeKutta(Solver):
    """An explicit Runge-Kutta method; subclasses are only their tableaus."""

    a: ClassVar[tuple[tuple[float, ...], ...]]
    b: ClassVar[tuple[float, ...]]
    c: ClassVar[tuple[float, ...]]

    def step(
        self, f: Derivative, state: State, grid: TimeGrid, i: int, history: History
    ) -> tuple[State, History]:
        h = grid[i + 1].tau - grid[i].tau
        if ends_clean(grid, i):
            return combine(state, [(h, f(grid[i], state))]), ()
        k: list[State] = []
        for row, c in zip(self.a, self.c, strict=True):
            terms = [(h * w, slope) for w, slope in zip(row, k, strict=True) if w]
            k.append(f(grid.between(i, c), combine(state, terms)))
        return combine(state, [(h * w, slope) for w, slope in zip(self.b, k, strict=True) if w]), ()

    def calls(self, steps: int, clean: bool = False) -> int:
        return (steps - clean) * len(self.b) + clean


@dataclass(frozen=True)
class Euler(RungeKutta):
    """z' = z + h f(z), order 1: DDIM (Song et al., 2021, arXiv 2010.02502) in these coordinates.

    One call a step. Use it to match a DDIM sampler, or with many steps; DPMSolverPP(2) is more
    accurate at the same cost.
    """

    order = 1
    a = ((),)
    b = (1.0,)
    c = (0.0,)


@dataclass(frozen=True)
class Midpoint(RungeKutta):
    """z' = z + h f(z + h/2 f(z)), order 2, two calls a step."""

    order = 2
    a = ((), (0.5,))
    b = (0.0, 1.0)
    c = (0.0, 0.5)


@dataclass(frozen=True)
class Heun(RungeKutta):
    """z' = z + h/2 (f(z) + f(z + h f(z))), order 2, two calls a step.

    The sampler of EDM (Karras et al., 2022, arXiv 2206.00364), which ends with an Euler step where the grid ends
    at sigma = 0.
    """

    order = 2
    a = ((), (1.0,))
    b = (0.5, 0.5)
    c = (0.0, 1.0)


@dataclass(frozen=True)
class RK4(RungeKutta):
    """The classical method of order 4, four calls a step.

    Use it for references and for smooth problems at tight tolerances; at the few steps of image
    sampling DPMSolverPP(2) is better for the same number of calls. On a grid that ends at sigma = 0 the last step
    is Euler's, and the order 2.
    """

    order = 4
    a = ((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0))
    b = (1 / 6, 1 / 3, 1 / 3, 1 / 6)
    c = (0.0, 0.5, 0.5, 1.0)
