"""Sampling run backwards: the state at the noisy end from which a solver's steps lead to a given clean state.

    one-step solvers     step(z_i) = z_{i+1}                             solved for z_i, from the last step to the first
    Coupled              w = w' + Psi_{-h}(y'),  y = (y' - (1 - c) w - Psi_h(w)) / c      explicit, of both copies
    Backwards            z_i = z_{i+1} - h/2 (f_i + f_{i+1}),  f_i at the Euler prediction of z_i     to its order alone

The usual inversion of DDIM takes z_i = z_{i+1} - h f(z_{i+1}) instead: one call a step, and wrong by a term of the
order of h^2 that guidance makes large. The equation above is that of the step that the sampler takes, so the sampler
returns to the clean state itself. It is solved by the iterations of `fixed_point`. A step of a multistep solver depends
on states that are not known yet; `Backwards` is what its inversion begins with.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .._types import AdjointDPMError, Derivative, InputError, State, Time
from ..flow.grids import TimeGrid
from .base import History, Solver, combine
from .fixed_point import solve
from .reversible import Coupled

__all__ = [
    "Backwards",
    "InversionError",
    "Trajectory",
    "check_invertible",
    "check_steps_apart",
    "coupled_inverse",
    "inverted",
]


class InversionError(AdjointDPMError, ArithmeticError):
    """A sampling could not be inverted to the tolerance; the message names the step, the residual and what helps.

    It is an `ArithmeticError` as well.
    """


@dataclass(frozen=True, eq=False)
class Trajectory:
    """The states that a solver passes on its way to a given one.

    states       z at each node, from the noisy end to the clean one
    residuals    of each step, the largest |step(z_i) - z_{i+1}| / |z_{i+1}| of the batch
    """

    states: list[Tensor]
    residuals: list[float]

    @property
    def worst(self) -> int:
        """The number of the step with the largest residual."""
        return max(range(len(self.residuals)), key=lambda i: self.residuals[i])


@dataclass(frozen=True)
class Backwards(Solver):
    """Heun's method from data to noise, which never evaluates the flow at sigma = 0.

        z_i = z_{i+1} + h/2 (f(z_{i+1}) + f_i),     f_i = f(z_{i+1} + h f(z_{i+1}))
        z_i = z_{i+1} + h f(z_{i+1}, t_i)           in a step that departs from sigma = 0

    It solves the flow, and so inverts the steps of any solver of the flow, but only as exactly as both of them solve
    it. The grid is that of the sampling, reversed.
    """

    order: int = 2  # type: ignore[misc]

    @property
    def one_step(self) -> bool:
        return True

    def step(
        self, f: Derivative, state: State, grid: TimeGrid, i: int, history: History
    ) -> tuple[State, History]:
        clean, noisy = grid[i], grid[i + 1]
        h = noisy.tau - clean.tau
        if clean.sigma == 0:
            return combine(state, [(h, f(state, noisy))]), ()
        slope = f(state, clean)
        ahead = f(combine(state, [(h, slope)]), noisy)
        return combine(state, [(h / 2, slope), (h / 2, ahead)]), ()

    def calls(self, steps: int, clean: bool = False) -> int:
        return 2 * steps


def check_invertible(solver: Solver) -> None:
    """Raise unless a sampling by a solver is determined by its end.

    Args:
        solver: the solver.

    Raises:
        InputError: it adds noise in its steps, or keeps two states.
    """
    known = "Heun() or DPMSolverPP()"
    if solver.drift != 1:
        raise InputError(
            f"{type(solver).__name__} adds noise in its steps, so its sampling cannot be inverted; use {known}: "
            "sampler.replace(solver=Heun())"
        )
    if isinstance(solver, Coupled):
        raise InputError(
            "Coupled carries two states, and its noise is the pair of both; use sampler.invert_coupled(images, cond), "
            f"or one of {known}"
        )


def check_steps_apart(solver: Solver, grid: TimeGrid) -> None:
    """Raise unless a solver evaluates each step before the step's end, so that a time belongs to one step.

    Args:
        solver: a one-step solver.
        grid: the instants, from noise to data.

    Raises:
        InputError: some step is evaluated at its end, as by Heun's method.
    """

    def f(state: State, time: Time) -> State:
        if time.t <= grid[i + 1].t:
            raise InputError(
                f"{type(solver).__name__} evaluates the flow at the end of a step, at the time at which the next step "
                "begins, so that the time does not say which step it is; use Euler(), Midpoint() or DPMSolverPP(1): "
                "sampler.replace(solver=Euler())"
            )
        return state

    for i in range(len(grid)):
        solver.step(f, (torch.zeros(1, dtype=torch.float64),), grid, i, ())


def inverted(
    f: Derivative, clean: Tensor, grid: TimeGrid, solver: Solver, tolerance: float = 1e-5
) -> Trajectory:
    """Find the states from which a one-step solver arrives at a given clean one.

    Args:
        f: d state / d tau, as f(state, time); samples of the batch do not depend on each other.
        clean: z at the last node, (batch, *shape).
        grid: the instants, from noise to data.
        solver: the scheme.
        tolerance: the |step(z_i) - z_{i+1}| / |z_{i+1}| at which the iteration of a step stops.

    Returns:
        the states, and what is left of each equation; whether that is little enough is for the caller to say.

    Raises:
        InputError: the solver cannot be inverted step by step.

    Examples:
        >>> import torch
        >>> import adjointdpm as adp
        >>> from adjointdpm.flow.grids import TimeGrid
        >>> grid = TimeGrid(adp.VPLinear(), adp.grids.uniform(adp.VPLinear(), 4))
        >>> found = inverted(lambda state, time: (0.1 * state[0],), torch.ones(1, 2), grid, adp.Euler())
        >>> len(found.states), max(found.residuals) < 1e-5
        (5, True)
    """
    check_invertible(solver)
    if not solver.one_step:
        raise InputError(
            f"a step of {solver!r} depends on the steps before it, which its end does not determine; a sampling by it "
            "is inverted as a whole (FlowSampler.invert), or take Heun()"
        )
    states, residuals = [clean], list[float]()
    for i in reversed(range(len(grid))):
        target, guess = states[0], states[0]
        if len(states) > 1:  # with the slope of the step that was inverted before
            h, before = (float(grid[j].tau - grid[j + 1].tau) for j in (i, i + 1))
            guess = target + (h / before) * (target - states[1])

        def residual(z: Tensor, i: int = i, target: Tensor = target) -> Tensor:
            return target - solver.step(f, (z,), grid, i, ())[0][0]

        root = solve(residual, guess, target, tolerance)
        states.insert(0, root.z)
        residuals.insert(0, float(root.residual.max()))
    return Trajectory(states, residuals)


def coupled_inverse(f: Derivative, clean: Tensor, grid: TimeGrid, solver: Coupled) -> tuple[Tensor, Tensor]:
    """Run the steps of a coupled solver backwards, from two equal copies of a clean state.

    Args:
        f: d state / d tau, as f(state, time).
        clean: z at the last node, (batch, *shape).
        grid: the instants, from noise to data.
        solver: the scheme.

    Returns:
        the two copies y and w at the first node; the sampling from both returns to `clean` to rounding.
    """
    y = w = clean
    for i in reversed(range(len(grid))):
        y, w = solver.unstep(f, y, w, grid, i)
    return y, w
