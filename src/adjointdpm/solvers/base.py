"""Solvers: one step of dz/dtau = f(z) on a given, usually uneven, grid.

A solver depends neither on networks nor on gradients. It advances a tuple of tensors, so the same code solves the
sampling ODE and, backwards, the paper's augmented ODE. Its history is a value that the step loop passes on and not
state of the solver, so one solver object can be shared.

No solver evaluates f at sigma = 0, where networks are not trained and eps may be 0 / 0. A step that ends there is an
Euler step, which ends at the data prediction, as in EDM (Karras et al., 2022, arXiv 2206.00364, algorithm 1).
"""

from abc import ABC, abstractmethod
from typing import Any

from .._types import Derivative, Scalar, State
from ..flow.grids import TimeGrid

__all__ = ["History", "Solver", "combine", "ends_clean"]

History = tuple[Any, ...]


class Solver(ABC):
    """An explicit one-step or multistep scheme of a known order.

    Derive from it for a scheme of your own: implement `step` and `calls`, and set `order`.

    Examples:
        >>> import adjointdpm as adp
        >>> isinstance(adp.Heun(), adp.Solver), adp.Heun().order, adp.Heun().calls(10)
        (True, 2, 20)
    """

    order: int
    """Global order of convergence on a smooth problem."""

    drift: float = 1.0
    """1 for the ODE; more for an SDE, whose deterministic part is `drift` times the ODE's velocity."""

    @property
    def one_step(self) -> bool:
        """Whether a step depends on the state it departs from alone, and not on the steps before."""
        return False

    @abstractmethod
    def step(
        self, f: Derivative, state: State, grid: TimeGrid, i: int, history: History
    ) -> tuple[State, History]:
        """Advance the state from node i to node i + 1.

        Args:
            f: d state / d tau, as f(state, time).
            state: the state at node i.
            grid: the grid.
            i: the number of the step, 0 to len(grid) - 1.
            history: what the step before returned; () at the first step.

        Returns:
            the state at node i + 1, and the history for the next step.
        """

    @abstractmethod
    def calls(self, steps: int, clean: bool = False) -> int:
        """The number of evaluations of f in some steps.

        Args:
            steps: the number of steps.
            clean: whether the last step ends at sigma = 0, where f is not evaluated.

        Returns:
            the number of evaluations.
        """


def ends_clean(grid: TimeGrid, i: int) -> bool:
    """Whether step i ends at sigma = 0."""
    return bool(grid[i + 1].sigma == 0)


def combine(state: State, terms: list[tuple[Scalar, State]]) -> State:
    """Add multiples of directions to a state, tensor by tensor.

        state + sum_j c_j d_j

    Args:
        state: the state.
        terms: the pairs (c_j, d_j).

    Returns:
        the new state.
    """
    out = []
    for each, *directions in zip(state, *(direction for _, direction in terms), strict=True):
        for (coefficient, _), direction in zip(terms, directions, strict=True):
            each = each + coefficient * direction
        out.append(each)
    return tuple(out)
