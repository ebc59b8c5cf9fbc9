"""Solvers: one step of dz/dtau = f(z) on a given, usually uneven, grid.

A solver knows neither networks nor gradients. It advances a tuple of tensors, so the same code solves
the sampling ODE and, backwards, the paper's augmented ODE. Its history is a value that the step loop
hands on, not state of the solver, so one solver object can be shared by everything.

No solver evaluates f at sigma = 0, where a network was not trained and eps may be 0 / 0: a step that ends there
is an Euler step, which ends at the data prediction, as in EDM (Karras et al., 2022, arXiv 2206.00364, algorithm 1).
"""

from abc import ABC, abstractmethod
from typing import Any

from .._types import Derivative, Scalar, State
from ..flow.grids import TimeGrid

__all__ = ["History", "Solver", "combine", "ends_clean"]

History = tuple[Any, ...]


class Solver(ABC):
    """An explicit one-step or multistep scheme of a known order."""

    order: int
    """Global order of convergence on a smooth problem."""

    drift: float = 1.0
    """1 for the ODE; more for an SDE, whose deterministic part is `drift` times the ODE's velocity."""

    @abstractmethod
    def step(
        self, f: Derivative, state: State, grid: TimeGrid, i: int, history: History
    ) -> tuple[State, History]:
        """From node i to node i + 1; the history is () at the first step."""

    @abstractmethod
    def calls(self, steps: int, clean: bool = False) -> int:
        """How often `step` evaluates f in that many steps.

        Args:
            steps: their number.
            clean: whether the last one ends at sigma = 0, where f is not evaluated.
        """


def ends_clean(grid: TimeGrid, i: int) -> bool:
    """Whether step i ends at sigma = 0."""
    return bool(grid[i + 1].sigma == 0)


def combine(state: State, terms: list[tuple[Scalar, State]]) -> State:
    """state + sum of coefficient times direction, tensor by tensor."""
    out = []
    for each, *directions in zip(state, *(direction for _, direction in terms), strict=True):
        for (coefficient, _), direction in zip(terms, directions, strict=True):
            each = each + coefficient * direction
        out.append(each)
    return tuple(out)
