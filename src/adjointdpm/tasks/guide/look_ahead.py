"""Guidance of the trajectory: at each step, the state moves down the gradient of where it leads.

    x^(z_i) = n steps of Euler from tau_i to the clean end         n = 1: the predicted x0
    z_i <- |z_i| u / |u|,   u = z_i - s tau_i sqrt(d) g / |g|,   g = d L(decode(x^(z_i))) / d z_i

and then the sampler's own step. n = 1 is one-step guidance, as in DPS (Chung et al., 2022, arXiv 2209.14687) and
FreeDoM (Yu et al., 2023, arXiv 2303.09833). More steps see a sharper image; their gradient is exact, as with the
symplectic adjoint (Pan et al., 2023, arXiv 2312.12030), here by differentiating the same steps that were taken, in the
memory of one graph where the sampler's adjoint is `Checkpointed`. The norm is kept: guided states stay on the shell
where the model's noise lies. With a target, u itself is the next state, and the move is no longer than Polyak's,
(L - L*) / |g|: each image of a batch is moved as far as its own metric asks for, and no further.
"""

from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
from torch import Tensor

from ..._types import Cond, InputError, Range, Time, check_settings
from ...adjoints import Backprop, Checkpointed
from ...flow.grids import TimeGrid
from ...flow.per_sample import norms, widened
from ...metrics.check import score
from ...samplers.flow_sampler import FlowSampler
from ...solvers import Euler
from ...solvers.base import History
from ..settings import Count, Length

__all__ = ["Guided", "LookAhead", "guided", "polyak"]


@dataclass(frozen=True)
class LookAhead:
    """How far each step of the trajectory looks, and how far it moves.

    Args:
        look_ahead: Number of steps that each step of the trajectory looks ahead.
        strength: Length of a move, as a fraction of the noise's norm.
        repeats: Number of moves at each step, each of which has its share of the length.
        first: Fraction of the trajectory at which guidance begins.
        last: Fraction of the trajectory at which guidance ends.
        target: Value of the metric that is aimed at, as in an inverse problem. A move is then at most as long as leads
            there by the metric's slope, and does not keep the state's norm; an image whose look-ahead is at or below
            the target is not moved.

    Raises:
        InputError: out of range.
    """

    look_ahead: Annotated[int, Range(1, 10_000)] = 1
    strength: Length = 0.2
    repeats: Count = 1
    first: float = 0.0
    last: float = 1.0
    target: float | None = None

    def __post_init__(self) -> None:
        check_settings(self)
        if not 0 <= self.first < self.last <= 1:
            raise InputError(
                f"a part of the trajectory is 0 <= first < last <= 1, not {self.first}, {self.last}"
            )


@dataclass(frozen=True, eq=False)
class Guided:
    """What guidance made.

    images        (batch, 3, height, width), not clamped
    losses        mean metric of each look-ahead
    calls         denoiser calls, forward and backward
    bytes_saved   the most that a backward pass held; None where it was not counted
    """

    images: Tensor
    losses: list[float]
    calls: int
    bytes_saved: int | None = None


def guided(sampler: FlowSampler, metric: Any, noise: Tensor, cond: Cond, ahead: LookAhead) -> Guided:
    """Sample with guidance; without training, and without a graph of the whole trajectory.

    Args:
        sampler: its solver, grid and adjoint are used. Where the adjoint is not exact, or is for another solver, the
            look-ahead has that of `Checkpointed()`.
        metric: of finished images, lower is better.
        noise: as of the sampler.
        cond: as of the sampler.
        ahead: where and how far the noise or the trajectory is moved.

    Returns:
        Guided: the images, the mean metric of each look-ahead, the denoiser calls, and the bytes that were held.

    Raises:
        InputError: the metric has no gradient, or the adjoint's budget of memory is too small.
        NonFiniteError: the metric is not finite.
    """
    if not isinstance(sampler.adjoint, Backprop | Checkpointed):
        sampler = sampler.replace(adjoint=Checkpointed())
    ivp = sampler.problem(noise, cond)
    flow, grid, z = ivp.flow, ivp.grid, ivp.initial
    calls, losses, held, measured = 0, list[float](), 0, True

    def f(state: tuple[Tensor, ...], time: Time) -> tuple[Tensor, ...]:
        return (ivp.velocity(state[0], time),)

    history: History = ()
    for i in range(len(grid)):
        if ahead.first <= i / len(grid) < ahead.last:
            path = TimeGrid(grid.schedule, grid.times[i:]).resampled(min(ahead.look_ahead, len(grid) - i))
            for _ in range(ahead.repeats):
                leaf = z.detach().requires_grad_()
                with torch.enable_grad():
                    rest = replace(ivp, solver=Euler(), grid=path, initial=leaf)
                    values = score(metric, sampler.decode(sampler.solved(rest, decoded=True)))
                    (gradient,) = torch.autograd.grad(values.sum(), leaf)
                calls += 2 * len(path)  # forward and backward; a recomputation is a matter of memory
                saved = sampler.stats.bytes_saved
                held, measured = max(held, saved or 0), measured and saved is not None
                losses.append(float(values.detach().mean()))
                length = float(grid[i].tau) * ahead.strength / ahead.repeats
                if ahead.target is None:
                    z = _moved(z, gradient, length)
                else:
                    z = z - polyak(values.detach() - ahead.target, gradient, length)
        with torch.no_grad():
            (z,), history = sampler.solver.step(f, (z,), grid, i, history)
    with torch.no_grad():
        images = sampler.decode(flow.sample(z, grid[len(grid)]))
    return Guided(images, losses, calls + ivp.calls, held if measured else None)


def polyak(excess: Tensor, gradient: Tensor, most: float = torch.inf) -> Tensor:
    """Return the move along a gradient that would take a linear metric to its target: (L - L*) g / |g|^2.

    Args:
        excess: L - L* of each sample, (batch,); no move is made where it is negative.
        gradient: g, (batch, *shape).
        most: the largest root mean square of a move.

    References:
        Polyak, 1969, USSR Computational Mathematics and Mathematical Physics 9.
    """
    norm = norms(gradient)
    length = (widened(excess, norm).clamp(min=0) / norm).clamp(max=most * gradient[0].numel() ** 0.5)
    return length / norm * gradient


def _moved(z: Tensor, gradient: Tensor, length: float) -> Tensor:
    """Return z less a move of a given root mean square, at its own norm again."""
    moved = z - length * z[0].numel() ** 0.5 * gradient / norms(gradient)
    return moved * (norms(z) / norms(moved))
