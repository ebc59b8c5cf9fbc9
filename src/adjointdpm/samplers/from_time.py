"""A sampling that begins at a time t of the schedule, at latents that were noised to it.

x_t = alpha_t x_0 + sigma_t eps,     then the sampler's solver from t to the clean end
"""

from collections.abc import Sequence

from torch import Tensor

from ..flow.grids import uniform
from ..flow.per_sample import normal_rows
from .flow_sampler import FlowSampler

__all__ = ["from_time", "noised"]


def from_time(sampler: FlowSampler, t: float, steps: int | None = None) -> FlowSampler:
    """Return a sampler of the last steps alone, from t to the clean end.

    Args:
        sampler: whose model, solver and adjoint it has.
        t: where it begins, as a share of the schedule's range: 0 < t <= 1.
        steps: number of steps, of even length; t times the sampler's own by default, at least 1.

    Raises:
        InputError: t outside (0, 1], or steps below 1.
    """
    steps = max(1, round(t * sampler.steps)) if steps is None else steps
    schedule = sampler.model.schedule
    start = schedule.end + t * (schedule.start - schedule.end)
    return sampler.replace(grid=uniform(schedule, steps, start=start))


def noised(sampler: FlowSampler, latents: Tensor, seeds: Sequence[int]) -> Tensor:
    """Return x_t, divided by the prior's deviation, by which the sampler multiplies what it starts from.

    Args:
        sampler: of `from_time`.
        latents: x_0, (batch, *shape).
        seeds: of each eps.
    """
    schedule, start = sampler.model.schedule, sampler.times()[:1]
    alpha, sigma, prior = (
        f(start).to(latents) for f in (schedule.alpha, schedule.sigma, schedule.prior_std)
    )
    return (alpha * latents + sigma * normal_rows(seeds, latents)) / prior
