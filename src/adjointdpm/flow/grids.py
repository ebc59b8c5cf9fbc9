"""Time grids: which instants a sampler visits, as a decreasing vector of steps + 1 times.

    uniform   t evenly spaced
    karras    rho^(1/7) evenly spaced (Karras et al., 2022, arXiv 2206.00364, equation 5)
    log_snr   lambda = -log rho evenly spaced (Lu et al., 2022, arXiv 2206.00927)

with rho = sigma / alpha. All take the schedule's own ends unless told otherwise. Any decreasing
float64 vector of times will do as a grid; one that requires a gradient gets it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float64
from torch import Tensor

from .._types import InputError, Time
from .schedules import Schedule

__all__ = ["Grid", "TimeGrid", "karras", "log_snr", "uniform"]

Times = Float64[Tensor, "nodes"]
Grid = Callable[[Schedule, int], Times]


def uniform(schedule: Schedule, steps: int, start: float | None = None, end: float | None = None) -> Times:
    """Times evenly spaced in the network's own unit; the plain choice, and diffusers' default."""
    start, end = _ends(schedule, steps, start, end)
    return torch.linspace(start, end, steps + 1, dtype=torch.float64)


def karras(schedule: Schedule, steps: int, start: float | None = None, end: float | None = None) -> Times:
    """More steps at low noise; good for second-order solvers and few steps."""
    first, last = _rho_ends(schedule, steps, start, end, "karras")
    root = torch.linspace(first ** (1 / 7), last ** (1 / 7), steps + 1, dtype=torch.float64)
    return _pinned(schedule, root**7, start, end)


def log_snr(schedule: Schedule, steps: int, start: float | None = None, end: float | None = None) -> Times:
    """Even steps of the log signal-to-noise ratio; what DPM-Solver's error analysis assumes."""
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
            f"t = {t.tolist()}; move the end (start=, end=) or use the grid `uniform`"
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
    """A grid seen through a schedule: its instants, and the instants between them.

    Args:
        schedule: the clock's meaning.
        times: decreasing when sampling, increasing when a continuous adjoint runs backwards.
    """

    schedule: Schedule
    times: Times

    def __post_init__(self) -> None:
        object.__setattr__(self, "_nodes", tuple(self.schedule.at(self.times)))

    @classmethod
    def checked(cls, schedule: Schedule, times: Tensor) -> "TimeGrid":
        """A grid for sampling, or an error that says what is wrong with these times."""
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
        """Number of steps."""
        return len(self.times) - 1

    def __getitem__(self, i: int) -> Time:
        return self._nodes[i]  # type: ignore[attr-defined]

    def between(self, i: int, c: float) -> Time:
        """The instant at tau_i + c (tau_{i+1} - tau_i): exact at c = 0 and c = 1."""
        if c in (0.0, 1.0):
            return self[i + int(c)]
        return self.schedule.at_tau(self[i].tau + c * (self[i + 1].tau - self[i].tau))

    def resampled(self, steps: int) -> "TimeGrid":
        """The same span in another number of steps, the nodes at equal fractions of the index."""
        place = torch.linspace(0, len(self), steps + 1, dtype=torch.float64)
        i = place.floor().long().clamp(max=len(self) - 1)
        return TimeGrid(self.schedule, self.times[i].lerp(self.times[i + 1], place - i))

    def reversed(self) -> "TimeGrid":
        """The same instants from the last to the first."""
        return TimeGrid(self.schedule, self.times.flip(0))


def even_nodes(grid: TimeGrid, steps: int) -> list[int]:
    """`steps` distinct departure nodes of a forward grid, the first included, for a backward pass with fewer steps.

        place_i = 1/2 i / N + 1/2 (lambda_i - lambda_0) / (lambda_N - lambda_0),     lambda = log(alpha / sigma)

    They are the forward nodes nearest to equal fractions of `place`. Equal fractions of the index leave too few nodes
    where the noise level changes fast, at the clean end; equal fractions of lambda, in which the data prediction
    changes evenly (Lu et al., 2022, arXiv 2206.00927), too few in the middle, where guidance bends the flow. Where
    lambda is infinite (sigma = 0, alpha = 0) the last step is taken as long as its neighbour.

    Where the forward grid is too coarse for an even spacing, neighbours are taken; so all N of N steps
    are the grid itself.
    """
    N = len(grid)
    snr, index = _log_snr(grid), torch.linspace(0, 1, N + 1, dtype=torch.float64)
    place = index / 2 + (snr - snr[0]) / (snr[-1] - snr[0]) / 2
    wanted = torch.linspace(float(place[0]), float(place[-1]), steps + 1, dtype=torch.float64)[:-1]
    nodes = [int((place - each).abs().argmin()) for each in wanted]
    for k in reversed(range(steps)):  # no node after the last departure, no two the same
        nodes[k] = min(nodes[k], nodes[k + 1] - 1 if k + 1 < steps else N - 1)
    for k in range(steps):
        nodes[k] = max(nodes[k], nodes[k - 1] + 1 if k else 0)
    return nodes


def coarser(grid: TimeGrid, nodes: list[int]) -> TimeGrid:
    """The grid that departs from those nodes alone, and ends where the whole one does."""
    return TimeGrid(grid.schedule, grid.times[[*nodes, len(grid)]])


def _log_snr(grid: TimeGrid) -> Tensor:
    place = torch.stack([grid[i].log_snr_half for i in range(len(grid) + 1)])
    if not bool(torch.isfinite(place[0])):
        place[0] = 2 * place[1] - place[2] if len(place) > 3 else place[1] - 1
    if not bool(torch.isfinite(place[-1])):
        place[-1] = 2 * place[-2] - place[-3] if len(place) > 3 else place[-2] + 1
    return place if bool(torch.isfinite(place).all()) else torch.arange(len(place), dtype=torch.float64)
