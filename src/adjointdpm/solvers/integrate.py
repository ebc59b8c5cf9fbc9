"""The initial value problem of sampling, and the only step loop."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from .._types import AdjointDPMError, Cond, Derivative, InputError, NonFiniteError, State, Time
from ..flow.denoisers import Denoiser, Prediction, explained, weight_of
from ..flow.grids import TimeGrid
from ..flow.influence import Influence
from ..flow.probability_flow import ProbabilityFlow
from .base import History, Solver, ends_clean

__all__ = ["IVP", "advanced", "integrate"]


@dataclass(frozen=True, eq=False)
class IVP:
    """The initial value problem dz/dtau = velocity(z), from `initial` at the first node of the grid to the last.

    Args:
        flow: the probability flow, which gives the velocity.
        solver: the scheme.
        grid: the instants.
        initial: z at the first node, (batch, *shape).
        cond: the conditioning.
        influence: checks the graphs of the first calls; None where nothing requires a gradient.
    """

    flow: ProbabilityFlow
    solver: Solver
    grid: TimeGrid
    initial: Float[Tensor, "batch *shape"]
    cond: Cond
    influence: Influence | None = None

    @property
    def calls(self) -> int:
        """The number of evaluations of the velocity in one sampling."""
        return self.solver.calls(len(self.grid), ends_clean(self.grid, len(self.grid) - 1))

    def wrapped(self, wrap: Callable[[Denoiser], Denoiser]) -> "IVP":
        """The same problem, with a wrapper around each evaluation of the denoiser; see `Denoiser.wrapped`."""
        return replace(self, flow=replace(self.flow, denoiser=self.flow.denoiser.wrapped(wrap)))

    def velocity(self, z: Tensor, time: Time) -> Tensor:
        """The flow's velocity for this conditioning, checked for NaN and infinity.

        Args:
            z: the state, (batch, *shape).
            time: the instant.

        Returns:
            dz/dtau, (batch, *shape).

        Raises:
            InputError: the network cannot be evaluated at this instant, or with these shapes or dtypes; or its output
                does not depend on z.
            NonFiniteError: the velocity holds NaN or infinity; the message names the step.
            RuntimeError: the network raised it for another reason.
            TypeError: likewise.
            IndexError: likewise.
        """
        self.refuse_meaningless(time)
        try:
            if self.influence is not None and self.influence.open:
                slope = self.influence.velocity(self.flow, z, time, self.cond)
            else:
                slope = self.flow.velocity(z, time, self.cond)
        except (RuntimeError, TypeError, IndexError) as error:
            network = self.flow.denoiser.innermost
            reason = explained(
                error, {"x": z, **self.cond}, f"the {type(network).__name__} ({weight_of(network).dtype})"
            )
            if reason is None or isinstance(error, AdjointDPMError):
                raise
            raise reason from error
        if not bool(torch.isfinite(slope).all()):
            raise NonFiniteError(self._blame(slope, z, time))
        return slope

    def refuse_meaningless(self, time: Time) -> None:
        """Raise if the velocity is not determined by the denoiser's output at an instant.

        Args:
            time: the instant.

        Raises:
            InputError: sigma = 0, and the instant is cleaner than any sample that the network was trained on, or the
                network predicts the data, which does not determine the noise there; or alpha = 0, and the network
                predicts the noise, which does not determine the data there.
        """
        schedule, kind = self.flow.schedule, self.flow.denoiser.prediction
        if time.sigma == 0 and (time.t < schedule.end or kind is Prediction.X0):
            raise InputError(
                f"the network would be evaluated at t = {time.t.item():g}, where sigma = 0: it was not trained there, "
                "or its data prediction does not determine the noise. The solvers of this library do not evaluate it "
                "there; a backward pass that solves the ODE from there (Continuous) needs a grid that ends above "
                f"sigma = 0, such as at t = {max(schedule.end, 1e-3):g}"
            )
        if time.alpha == 0 and kind is Prediction.EPS:
            raise InputError(
                f"at t = {time.t.item():g} alpha is 0, where a prediction of the noise does not determine the data; "
                "start the grid at a smaller t, or use a network that predicts v, the data or the velocity"
            )

    def _blame(self, slope: Tensor, z: Tensor, time: Time) -> str:
        step = int((self.grid.times >= time.t.detach()).sum()) - 1
        what = "NaN" if bool(torch.isnan(slope).any()) else "infinity"
        given = "finite" if bool(torch.isfinite(z).all()) else "not finite either"
        return (
            f"the denoiser returned {what} at step {max(step, 0)} of {len(self.grid)} "
            f"(t = {float(time.t):g}); its input was {given}, with largest value "
            f"{float(z.detach().abs().max()):g}. Check its weights and dtype (float16 overflows "
            "above 65504), or lower the guidance scale"
        )


def integrate(
    f: Derivative,
    state: State,
    grid: TimeGrid,
    solver: Solver,
    observe: Callable[[int, State], None] = lambda i, state: None,
) -> State:
    """Advance a state from the grid's first instant to its last.

    Args:
        f: d state / d tau, as f(state, time).
        state: the state at the first node, a tuple of tensors.
        grid: the instants.
        solver: the scheme.
        observe: called with every node's number and state, the first and the last included.

    Returns:
        the state at the last node.
    """
    return advanced(f, state, grid, solver, observe)[0]


def advanced(
    f: Derivative,
    state: State,
    grid: TimeGrid,
    solver: Solver,
    observe: Callable[[int, State], None] = lambda i, state: None,
) -> tuple[State, History]:
    """Like `integrate`, and return the history that the last step leaves.

    The history of `Coupled` is its second state.

    Args:
        f: d state / d tau, as f(state, time).
        state: the state at the first node, a tuple of tensors.
        grid: the instants.
        solver: the scheme.
        observe: called with every node's number and state, the first and the last included.

    Returns:
        the state at the last node, and the history.
    """
    history: History = ()
    observe(0, state)
    for i in range(len(grid)):
        state, history = solver.step(f, state, grid, i, history)
        observe(i + 1, state)
    return state, history
