"""Time grids: the instants that a sampler visits, as a decreasing vector of steps + 1 times.

    uniform   t evenly spaced
    karras    rho^(1/7) evenly spaced (Karras et al., 2022, arXiv 2206.00364, equation 5)
    log_snr   lambda = -log rho evenly spaced (Lu et al., 2022, arXiv 2206.00927)

with rho = sigma / alpha. All take the schedule's own ends by default. Any decreasing float64 vector of times can
serve as a grid; a vector that requires a gradient receives one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float64
from torch import Tensor

from .._types import InputError, NonFiniteError, Time
from .schedules import Schedule

__all__ = ["Grid", "TimeGrid", "karras", "log_snr", "uniform"]

Times = Float64[Tensor, "nodes"]
Grid = Callable[[Schedule, int], Times]


def uniform(schedule: Schedule, steps: int, start: float | None = None, end: float | None = None) -> Times:
    """Times evenly spaced in the network's own unit.

    This is the default of diffusers, and of `FlowSampler`.

    Args:
        schedule: the schedule whose ends are taken by default.
        steps: number of steps, at least 1.
        start: the noisy end, in the network's unit; the schedule's own if None.
        end: the clean end, in the network's unit; the schedule's own if None.

    Returns:
        the times, decreasing, (steps + 1,), float64.

    Raises:
        InputError: steps < 1, or the ends do not decrease or leave the schedule.

    Examples:
        >>> import torch
        >>> import adjointdpm as adp
        >>> [round(t, 3) for t in adp.grids.uniform(adp.VPDiscrete(torch.linspace(0.9, 0.1, 5)), 4).tolist()]
        [4.0, 3.0, 2.0, 1.0, 0.0]
    """
    start, end = _ends(schedule, steps, start, end)
    return torch.linspace(start, end, steps + 1, dtype=torch.float64)


def karras(schedule: Schedule, steps: int, start: float | None = None, end: float | None = None) -> Times:
    """Times whose rho^(1/7) is evenly spaced, so that more steps lie at low noise.

    Use it with second-order solvers and few steps.

    Args:
        schedule: the schedule whose ends are taken by default.
        steps: number of steps, at least 1.
        start: the noisy end, in the network's unit; the schedule's own if None.
        end: the clean end, in the network's unit; the schedule's own if None.

    Returns:
        the times, decreasing, (steps + 1,), float64.

    Raises:
        InputError: steps < 1, or the ends do not decrease or leave the schedule; or sigma / alpha is 0
            or infinite at one of them.

    References:
        Karras et al., 2022, arXiv 2206.00364, equation 5.

    Examples:
        >>> import adjointdpm as adp
        >>> [round(t, 3) for t in adp.grids.karras(adp.EDMSchedule(), 4).tolist()]
        [80.0, 17.528, 2.515, 0.17, 0.002]
    """
    first, last = _rho_ends(schedule, steps, start, end, "karras")
    root = torch.linspace(first ** (1 / 7), last ** (1 / 7), steps + 1, dtype=torch.float64)
    return _pinned(schedule, root**7, start, end)


def log_snr(schedule: Schedule, steps: int, start: float | None = None, end: float | None = None) -> Times:
    """Times at even steps of the log signal-to-noise ratio.

    The error analysis of DPM-Solver assumes this grid.

    Args:
        schedule: the schedule whose ends are taken by default.
        steps: number of steps, at least 1.
        start: the noisy end, in the network's unit; the schedule's own if None.
        end: the clean end, in the network's unit; the schedule's own if None.

    Returns:
        the times, decreasing, (steps + 1,), float64.

    Raises:
        InputError: steps < 1, or the ends do not decrease or leave the schedule; or sigma / alpha is 0
            or infinite at one of them.

    References:
        Lu et al., 2022, arXiv 2206.00927.

    Examples:
        >>> import adjointdpm as adp
        >>> [round(t, 3) for t in adp.grids.log_snr(adp.EDMSchedule(0.1, 10.0), 4).tolist()]
        [10.0, 3.162, 1.0, 0.316, 0.1]
    """
    first, last = _rho_ends(schedule, steps, start, end, "log_snr")
    log_rho = torch.linspace(first.log(), last.log(), steps + 1, dtype=torch.float64)  # type: ignore[call-overload]
    return _pinned(schedule, log_rho.exp(), start, end)


def _ends(schedule: Schedule, steps: int, start: float | None, end: float | None) -> tuple[float, float]:
    if not isinstance(steps, int) or steps < 1:
        raise InputError(f"steps must be a whole number, at least 1, but is {steps}")
    start = schedule.start if start is None else start
    end = schedule.end if end is None else end
    if not schedule.limit <= end < start:
        raise InputError(
            f"a grid runs from its noisy start down to its clean end >= {schedule.limit}, "
            f"but start = {start} and end = {end}"
        )
    return start, end


def _rho_ends(schedule: Schedule, steps: int, start: float | None, end: float | None, name: str) -> Tensor:
    t = torch.tensor(_ends(schedule, steps, start, end), dtype=torch.float64)
    rho = schedule.sigma(t) / schedule.alpha(t)
    if not bool(torch.isfinite(rho).all() and (rho > 0).all()):
        raise InputError(
            f"{name} needs 0 < sigma / alpha < infinity at both ends, but it is {rho.tolist()} at "
            f"t = {t.tolist()}; move that end (start= or end=), or use the grid `uniform`"
        )
    return rho


def _pinned(schedule: Schedule, rho: Tensor, start: float | None, end: float | None) -> Times:
    times = schedule.time(rho / (1 + rho))
    # The two ends exactly, not to the rounding of the inverse.
    times[0] = schedule.start if start is None else start
    times[-1] = schedule.end if end is None else end
    return times


@dataclass(frozen=True, eq=False)
class TimeGrid:
    """A vector of times with its schedule: the instants of the grid, and those between them.

    Args:
        schedule: gives alpha, sigma and tau at each time.
        times: (steps + 1,), float64; decreasing for sampling, increasing for a continuous adjoint's backward pass.
    """

    schedule: Schedule
    times: Times

    def __post_init__(self) -> None:
        object.__setattr__(self, "_nodes", tuple(self.schedule.at(self.times)))

    @classmethod
    def checked(cls, schedule: Schedule, times: Tensor) -> "TimeGrid":
        """A grid for sampling, after its times have been checked.

        A gradient of the times is checked, too: it is an error where one of them is not finite.

        Args:
            schedule: the schedule.
            times: (steps + 1,), in the network's unit.

        Returns:
            the grid, its times in float64 on the CPU.

        Raises:
            InputError: the times are not a vector of at least two, do not decrease, or leave the schedule.
        """
        if times.requires_grad and times.is_leaf:
            times = times.view_as(times)  # the hook is this grid's alone
            times.register_hook(_refuse_infinite)
        times = torch.as_tensor(times).to("cpu", torch.float64)
        if times.ndim != 1 or len(times) < 2:
            raise InputError(
                f"a grid is a vector of at least two times, but has shape {tuple(times.shape)}"
            )
        values: list[float] = times.tolist()
        for i, (before, after) in enumerate(pairwise(values)):
            if not after < before:
                raise InputError(
                    "a grid's times must decrease strictly, from noise to data, but time "
                    f"{i + 1} ({after:g}) follows time {i} ({before:g})"
                )
        if values[-1] < schedule.limit or values[0] > schedule.start:
            raise InputError(
                f"this schedule is defined from {schedule.limit:g} to {schedule.start:g}, but the grid "
                f"runs from {values[0]:g} to {values[-1]:g}"
            )
        return cls(schedule, times)

    def __len__(self) -> int:
        """The number of steps."""
        return len(self.times) - 1

    def __getitem__(self, i: int) -> Time:
        return self._nodes[i]  # type: ignore[attr-defined]

    def between(self, i: int, c: float) -> Time:
        """The instant at tau_i + c (tau_{i+1} - tau_i); exactly a node at c = 0 and c = 1.

        Args:
            i: the number of the step.
            c: the fraction of the step, 0 to 1.

        Returns:
            the instant.
        """
        if c in (0.0, 1.0):
            return self[i + int(c)]
        return self.schedule.at_tau(self[i].tau + c * (self[i + 1].tau - self[i].tau))

    def resampled(self, steps: int) -> "TimeGrid":
        """The same span in another number of steps, with nodes at equal fractions of the index.

        Args:
            steps: the new number of steps.

        Returns:
            the new grid.
        """
        place = torch.linspace(0, len(self), steps + 1, dtype=torch.float64)
        i = place.floor().long().clamp(max=len(self) - 1)
        return TimeGrid(self.schedule, self.times[i].lerp(self.times[i + 1], place - i))

    def reversed(self) -> "TimeGrid":
        """The same instants from the last to the first."""
        return TimeGrid(self.schedule, self.times.flip(0))


def even_nodes(grid: TimeGrid, steps: int) -> list[int]:
    """Choose the departure nodes of a backward pass with fewer steps.

        place_i = 1/2 i / N + 1/2 (lambda_i - lambda_0) / (lambda_N - lambda_0),     lambda = log(alpha / sigma)

    The nodes are the forward nodes nearest to equal fractions of `place`. Equal fractions of the index would leave too
    few nodes at the clean end, where the noise level changes fast. Equal fractions of lambda, in which the data
    prediction changes evenly (Lu et al., 2022, arXiv 2206.00927), would leave too few in the middle, where guidance
    bends the flow. Where lambda is infinite (sigma = 0 or alpha = 0) that step counts as long as its neighbor.

    Where the forward grid is too coarse for an even spacing, neighboring nodes are chosen. So N of N steps are the
    grid itself.

    Args:
        grid: the forward grid of N steps.
        steps: how many nodes to choose, 1 to N.

    Returns:
        the numbers of the nodes, distinct and increasing, the first node included.
    """
    N = len(grid)
    snr, index = _log_snr(grid), torch.linspace(0, 1, N + 1, dtype=torch.float64)
    place = index / 2 + (snr - snr[0]) / (snr[-1] - snr[0]) / 2
    targets = torch.linspace(float(place[0]), float(place[-1]), steps + 1, dtype=torch.float64)[:-1]
    nodes = [int((place - each).abs().argmin()) for each in targets]
    for k in reversed(range(steps)):  # no node after the last departure, no two the same
        nodes[k] = min(nodes[k], nodes[k + 1] - 1 if k + 1 < steps else N - 1)
    for k in range(steps):
        nodes[k] = max(nodes[k], nodes[k - 1] + 1 if k else 0)
    return nodes


def coarser(grid: TimeGrid, nodes: list[int]) -> TimeGrid:
    """The grid that departs from some nodes of another grid and has the same end.

    Args:
        grid: the whole grid.
        nodes: numbers of its departure nodes, increasing.

    Returns:
        the grid of len(nodes) steps.
    """
    return TimeGrid(grid.schedule, grid.times[[*nodes, len(grid)]])


def _log_snr(grid: TimeGrid) -> Tensor:
    place = torch.stack([grid[i].log_snr_half for i in range(len(grid) + 1)])
    if not bool(torch.isfinite(place[0])):
        place[0] = 2 * place[1] - place[2] if len(place) > 3 else place[1] - 1
    if not bool(torch.isfinite(place[-1])):
        place[-1] = 2 * place[-2] - place[-3] if len(place) > 3 else place[-2] + 1
    return place if bool(torch.isfinite(place).all()) else torch.arange(len(place), dtype=torch.float64)


def _refuse_infinite(cotangent: Tensor) -> None:
    """The gradient of a time grid is not finite, as at sigma = 0 of a variance-preserving schedule."""
    if not bool(torch.isfinite(cotangent).all()):
        i = int((~torch.isfinite(cotangent)).nonzero()[0])
        raise NonFiniteError(
            f"the gradient of the grid's time number {i} is {cotangent[i].item()}: its noise level has no finite slope "
            "there, as at sigma = 0. Move that time, or keep it fixed: grid=torch.cat([times, fixed])"
        )
