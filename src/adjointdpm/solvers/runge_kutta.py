"""Explicit Runge-Kutta methods; each is a Butcher tableau.

    k_j = f(tau_i + c_j h, z_i + h sum_l a_jl k_l),     z_{i+1} = z_i + h sum_j b_j k_j

Stages between nodes are evaluated at their true times, from the inverse of tau, and not at the nearest training step.
A step that ends at sigma = 0 is an Euler step, since its other stages would lie where no network was trained.
"""

from dataclasses import dataclass
from typing import ClassVar

from .._types import Derivative, State
from ..flow.grids import TimeGrid
from .base import History, Solver, combine, ends_clean

__all__ = ["RK4", "Euler", "Heun", "Midpoint", "RungeKutta"]


class RungeKutta(Solver):
    """An explicit Runge-Kutta method; a subclass gives its tableau a, b, c and its order."""

    a: ClassVar[tuple[tuple[float, ...], ...]]
    b: ClassVar[tuple[float, ...]]
    c: ClassVar[tuple[float, ...]]

    @property
    def one_step(self) -> bool:
        return True

    def step(
        self, f: Derivative, state: State, grid: TimeGrid, i: int, history: History
    ) -> tuple[State, History]:
        h = grid[i + 1].tau - grid[i].tau
        if ends_clean(grid, i):
            return combine(state, [(h, f(state, grid[i]))]), ()
        k: list[State] = []
        for row, c in zip(self.a, self.c, strict=True):
            terms = [(h * w, slope) for w, slope in zip(row, k, strict=True) if w]
            k.append(f(combine(state, terms), grid.between(i, c)))
        return combine(state, [(h * w, slope) for w, slope in zip(self.b, k, strict=True) if w]), ()

    def calls(self, steps: int, clean: bool = False) -> int:
        return (steps - clean) * len(self.b) + clean


@dataclass(frozen=True)
class Euler(RungeKutta):
    """The Euler method, order 1, one call a step; in these coordinates it is DDIM.

        z' = z + h f(z)

    Use it to reproduce a DDIM sampler, or with many steps. DPMSolverPP(2) is more accurate at the same cost.

    References:
        DDIM: Song et al., 2021, arXiv 2010.02502.

    Examples:
        >>> import adjointdpm as adp
        >>> sampler = adp.load_bundled("emoji", steps=2, solver=adp.Euler())
        >>> sampler(sampler.noise(), sampler.encode("a cat")).shape
        torch.Size([1, 3, 64, 64])
    """

    order = 1
    a = ((),)
    b = (1.0,)
    c = (0.0,)


@dataclass(frozen=True)
class Midpoint(RungeKutta):
    """The midpoint method, order 2, two calls a step.

        z' = z + h f(z + h/2 f(z))

    DPMSolverPP(2) has the same order at one call a step; use this one where a one-step method is needed, as in
    `Coupled`.

    Examples:
        >>> import adjointdpm as adp
        >>> sampler = adp.load_bundled("emoji", steps=2, solver=adp.Midpoint())
        >>> sampler(sampler.noise(), sampler.encode("a cat")).shape
        torch.Size([1, 3, 64, 64])
    """

    order = 2
    a = ((), (0.5,))
    b = (0.0, 1.0)
    c = (0.0, 0.5)


@dataclass(frozen=True)
class Heun(RungeKutta):
    """Heun's method, order 2, two calls a step: the deterministic sampler of EDM.

        z' = z + h/2 (f(z) + f(z + h f(z)))

    It ends with an Euler step where the grid ends at sigma = 0. DPMSolverPP(2) has the same order at one call a step.

    References:
        Karras et al., 2022, arXiv 2206.00364.

    Examples:
        >>> import adjointdpm as adp
        >>> sampler = adp.load_bundled("emoji", steps=2, solver=adp.Heun())
        >>> sampler(sampler.noise(), sampler.encode("a cat")).shape
        torch.Size([1, 3, 64, 64])
    """

    order = 2
    a = ((), (1.0,))
    b = (0.5, 0.5)
    c = (0.0, 1.0)


@dataclass(frozen=True)
class RK4(RungeKutta):
    """The classical Runge-Kutta method of order 4, four calls a step.

    Use it for reference solutions and for smooth problems at tight tolerances. At the few steps of image sampling
    DPMSolverPP(2) is better for the same number of calls. On a grid that ends at sigma = 0 the last step is an Euler
    step, and the order is 2.

    Examples:
        >>> import adjointdpm as adp
        >>> sampler = adp.load_bundled("emoji", steps=2, solver=adp.RK4())
        >>> sampler(sampler.noise(), sampler.encode("a cat")).shape
        torch.Size([1, 3, 64, 64])
    """

    order = 4
    a = ((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0))
    b = (1 / 6, 1 / 3, 1 / 3, 1 / 6)
    c = (0.0, 0.5, 0.5, 1.0)
