"""Multistep methods: one denoiser call a step, and the coefficients of the grid that is used.

Adams-Bashforth integrates the polynomial through the last k slopes exactly over the next step.
DPM-Solver++(2M) (Lu et al., 2022, arXiv 2211.01095) extrapolates the data prediction instead:

    z' = (tau'/tau) z + (1 - tau'/tau) D,      D_1 = x0_i,    D_2 = x0_i + h / (2 h_last) (x0_i - x0_{i-1})

with h the step in lambda = log(alpha / sigma) and x0 = z - tau dz/dtau. The first line is the paper's
x' = (sigma'/sigma) x - alpha' (exp(-h) - 1) D divided by the scale of x, and holds in both coordinates.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .._types import Derivative, InputError, State, Time
from ..flow.grids import TimeGrid
from .base import History, Solver, combine
from .runge_kutta import RK4

__all__ = ["AdamsBashforth", "DPMSolverPP", "extrapolated"]


@dataclass(frozen=True)
class AdamsBashforth(Solver):
    """The Adams-Bashforth method on an uneven grid, exact for slopes that are polynomials of degree order - 1.

        z' = z + sum_j w_j f_{i-j}
        sum_j w_j (tau_{i-j} - tau_i)^m = h^(m+1) / (m + 1),    m = 0 ... order - 1

    It makes one call a step. The first steps use the lower orders. Orders 3 and 4 start with RK4 steps, since an Euler
    start would limit the global order to 2. In the variable rho it is unstable in the first few steps of an image
    sampler, so prefer DPMSolverPP(2) for sampling. It is a good backward solver for `Continuous`.

    Args:
        order: 1 (= Euler) to 4.

    Raises:
        InputError: another order.

    References:
        DEIS: Zhang and Chen, 2023, arXiv 2204.13902.

    Examples:
        >>> import adjointdpm as adp
        >>> sampler = adp.load_bundled("emoji", steps=2, solver=adp.AdamsBashforth(order=2))
        >>> sampler(sampler.noise(), sampler.encode("a cat")).shape
        torch.Size([1, 3, 64, 64])
    """

    order: int = 2  # type: ignore[misc]

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3, 4):
            raise InputError(f"AdamsBashforth has orders 1, 2, 3 and 4, but order = {self.order}")

    @property
    def one_step(self) -> bool:
        return self.order == 1

    def step(
        self, f: Derivative, state: State, grid: TimeGrid, i: int, history: History
    ) -> tuple[State, History]:
        slope = f(state, grid[i])
        history = ((grid[i].tau, slope), *history)[: self.order]
        if len(history) < self.order > 2:
            started = iter([slope])  # RK4's first stage is the slope already at hand

            def reuse(at: State, time: Time) -> State:
                return next(started, None) or f(at, time)

            return RK4().step(reuse, state, grid, i, ())[0], history
        weights = self._weights([tau for tau, _ in history], grid[i + 1].tau)
        slopes = [slope for _, slope in history]
        return combine(state, list(zip(weights.unbind(), slopes, strict=True))), history

    @staticmethod
    def _weights(taus: list[Tensor], target: Tensor) -> Tensor:
        """The w_j above, newest first; solved for in units of the step, so that the system is well scaled."""
        h = target - taus[0]
        place = torch.stack([(tau - taus[0]) / h for tau in taus])
        powers = torch.arange(len(taus), dtype=torch.float64)
        return h * torch.linalg.solve(place[None, :] ** powers[:, None], 1 / (powers + 1))

    def calls(self, steps: int, clean: bool = False) -> int:
        starts = self.order - 1 if self.order > 2 else 0
        return steps + 3 * min(steps - clean, starts)


@dataclass(frozen=True)
class DPMSolverPP(Solver):
    """DPM-Solver++ of order 1 (= DDIM) or 2 (2M, the default of most image pipelines).

        z' = (tau'/tau) z + (1 - tau'/tau) D        D: the data prediction, extrapolated at order 2

    It makes one call a step and is stable at the few steps and high guidance of image sampling, so it is the default
    of `FlowSampler`. The last step is of order 1 where the grid ends at sigma = 0, as in diffusers'
    `DPMSolverMultistepScheduler`.

    Args:
        order: 1 or 2.

    Raises:
        InputError: another order.

    References:
        Lu et al., 2022, arXiv 2211.01095.

    Examples:
        >>> import adjointdpm as adp
        >>> sampler = adp.load_bundled("emoji", steps=2, solver=adp.DPMSolverPP(order=2))
        >>> sampler(sampler.noise(), sampler.encode("a cat")).shape
        torch.Size([1, 3, 64, 64])
    """

    order: int = 2  # type: ignore[misc]

    def __post_init__(self) -> None:
        if self.order not in (1, 2):
            raise InputError(f"DPMSolverPP has orders 1 and 2 (2M), but order = {self.order}")

    @property
    def one_step(self) -> bool:
        return self.order == 1

    def step(
        self, f: Derivative, state: State, grid: TimeGrid, i: int, history: History
    ) -> tuple[State, History]:
        now, then = grid[i], grid[i + 1]
        slope = f(state, now)
        data = combine(state, [(-now.tau, slope)])
        if now.tau == 0:  # only in a backward solution from clean data; the same step without 0 / 0
            return combine(state, [(then.tau, slope)]), (now, data)
        ahead = extrapolated(data, history, now, then) if self.order == 2 else data
        shrink = then.tau / now.tau
        state = tuple(shrink * z + (1 - shrink) * d for z, d in zip(state, ahead, strict=True))
        return state, (now, data)

    def calls(self, steps: int, clean: bool = False) -> int:
        return steps


def extrapolated(data: State, history: History, now: Time, then: Time) -> State:
    """The data prediction in the middle of a step, extrapolated in lambda = log(alpha / sigma) from two predictions.

        D + r (D - D_last),    r = (lambda_{i+1} - lambda_i) / (2 (lambda_i - lambda_{i-1}))

    Args:
        data: D, the prediction at the start of the step.
        history: the time and the prediction of the last step; empty in the first step.
        now: the start of the step.
        then: its end.

    Returns:
        the prediction; D itself in the first step, and in one that ends at sigma = 0.
    """
    if not history or then.tau <= 0:
        return data
    last_time, last_data = history
    h = then.log_snr_half - now.log_snr_half
    half_ratio = h / (2 * (now.log_snr_half - last_time.log_snr_half))
    return tuple(
        (1 + half_ratio) * new - half_ratio * old for new, old in zip(data, last_data, strict=True)
    )
