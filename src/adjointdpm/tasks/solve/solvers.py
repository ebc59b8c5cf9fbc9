"""Solvers of inverse problems: images whose measurement is the given one, by the gradient of `metrics.Measured`.

    d-flow       `noise_space`: min over |x_T| = |x_T^0| of L(x(x_T, c)), through the whole sampling
    look-ahead   `guide.look_ahead`: each state moves by where the next n steps lead
    dps          z_{i+1} = step(z_i) - s g,   g = d L(decode(x0(z_i))) / d z_i, through the network
    dps-mean     the mean of the latents of dps from n, -n and both in reversed order, each with a quarter of the calls,
                 and moves of it like those of dps through the decoder alone
    flowchef     the same with d x0 / d z = 1, so that no network is differentiated
    mmps         `moment_matching`: each prediction x0(z_i) is corrected by its covariance and the measurement

L is 1/2 where what is left is noise of the measurement. look-ahead, dps and flowchef aim at that: their moves have
Polyak's length, s = (L - 1/2) / |g|^2, in place of a constant that is tuned for each operator.

The mean of the posterior has the smallest squared error of all estimates, and half of that of an exact sample; dps-mean
estimates it. What is affine in the noise cancels between n and -n (antithetic variables; Hammersley and Morton, 1956).
The moves of the mean restore its agreement with the measurement without a denoiser call (hard consistency; Song et al.,
2023, arXiv 2307.08123).

References: Chung et al., 2022, arXiv 2209.14687 (DPS); Patel et al., 2024, arXiv 2412.00100 (FlowChef); Ben-Hamu et
al., 2024, arXiv 2402.14017 (D-Flow); Rozet et al., 2024, arXiv 2405.13712 (MMPS); Hammersley and Morton, 1956,
Mathematical Proceedings of the Cambridge Philosophical Society 52.
"""

from typing import Any

import torch
from torch import Tensor

from ..._types import Cond, InputError
from ...flow.grids import uniform
from ...metrics.check import score
from ...samplers.flow_sampler import FlowSampler
from ..guide.look_ahead import Guided, LookAhead, guided, polyak
from .moment_matching import moment_matched
from .noise_space import optimized_noise

__all__ = ["METHODS", "TARGET", "solved"]

METHODS = ("d-flow", "look-ahead", "dps-mean", "dps", "flowchef", "mmps")
"""The names of the solvers."""

TARGET = 0.5
"""The metric where what is left of the measurement is its noise."""

_MOST_STEPS = 200
_AHEAD = 2  # steps that the look-ahead sees
_FREELY = 1e6  # Polyak's length alone limits its moves
_MOVES = {"dps-mean": 12, "dps": 0, "flowchef": 0}  # of the final latents, through the decoder alone
_ITERATIONS = 1  # of conjugate gradients of MMPS


def solved(
    method: str,
    sampler: FlowSampler,
    metric: Any,
    noise: Tensor,
    cond: Cond,
    budget: int,
    decoder_moves: int | None = None,
) -> Guided:
    """Solve an inverse problem by one method within a number of denoiser calls.

    Args:
        method: one of `METHODS`.
        sampler: the model, its guidance and its steps, which D-Flow takes; the others take as many steps as the calls
            allow.
        metric: of finished images; a `Measured`, or for all but mmps any metric that is 0.5 where it is good enough.
        noise: as of the sampler.
        cond: as of the sampler.
        budget: denoiser calls of an image, forward and backward, at least those of one step of the method.
        decoder_moves: moves of the final latents through the decoder alone, for dps-mean (12 if None), dps and flowchef
            (none if None).

    Returns:
        Guided: the images, the metric on the way, and the calls that were made.

    Raises:
        InputError: decoder_moves for another solver; mmps with another metric than a `Measured`, or with an operator or
            a decoder that has no forward-mode derivative.
    """
    if decoder_moves is not None and method not in _MOVES:
        raise InputError(
            f"decoder_moves are of {', '.join(_MOVES)}, but the solver is {method}; leave them out"
        )
    if method == "d-flow":
        return optimized_noise(sampler, metric, noise, cond, budget, TARGET)
    if method == "look-ahead":
        return _look_ahead(sampler, metric, noise, cond, budget)
    if method == "mmps":
        steps = min(_MOST_STEPS, max(1, budget // (1 + _ITERATIONS)))
        return moment_matched(_with_steps(sampler, steps), metric, noise, cond, _ITERATIONS)
    if method == "dps-mean":
        latents, losses, calls = _mean(sampler, metric, noise, cond, budget)
    else:
        latents, losses, calls = _stepwise(sampler, metric, noise, cond, budget, through=method == "dps")
    for _ in range(_MOVES[method] if decoder_moves is None else decoder_moves):
        leaf = latents.detach().requires_grad_()
        with torch.enable_grad():
            values = score(metric, sampler.decode(leaf))
            (gradient,) = torch.autograd.grad(values.sum(), leaf)
        losses.append(float(values.detach().mean()))
        latents = latents - polyak(values.detach() - TARGET, gradient)
    with torch.no_grad():
        return Guided(sampler.decode(latents), losses, calls)


def _look_ahead(sampler: FlowSampler, metric: Any, noise: Tensor, cond: Cond, budget: int) -> Guided:
    """Guide the trajectory with one move a step, of as many steps as the calls allow."""
    steps = min(_MOST_STEPS, max(1, budget // (2 * _AHEAD + 1)))
    sampler = _with_steps(sampler, steps)
    ahead = LookAhead(look_ahead=min(_AHEAD, steps), strength=_FREELY, target=TARGET)
    return guided(sampler, metric, noise, cond, ahead)


def _mean(
    sampler: FlowSampler, metric: Any, noise: Tensor, cond: Cond, budget: int
) -> tuple[Tensor, list[float], int]:
    """Return the mean of the latents of dps from several noises, which share the calls."""
    starts = _starts(noise)
    parts = [_stepwise(sampler, metric, each, cond, budget // len(starts), through=True) for each in starts]
    latents = torch.stack([part[0] for part in parts]).mean(0)
    losses = [sum(each) / len(parts) for each in zip(*(part[1] for part in parts), strict=True)]
    return latents, losses, sum(part[2] for part in parts)


def _starts(noise: Tensor) -> list[Tensor]:
    """Return the noise, the same in reversed order, and both with the other sign."""
    reverse = noise.flatten(1).flip(1).view_as(noise)
    return [noise, -noise, reverse, -reverse]


def _with_steps(sampler: FlowSampler, steps: int) -> FlowSampler:
    """Return the sampler with other steps, on the default grid if its own is a list of times."""
    grid = uniform if isinstance(sampler.grid, Tensor) else sampler.grid
    return sampler.replace(steps=steps, grid=grid)


def _stepwise(
    sampler: FlowSampler, metric: Any, noise: Tensor, cond: Cond, budget: int, through: bool
) -> tuple[Tensor, list[float], int]:
    """Move each state, after its step, down the gradient of the metric of the predicted clean image.

    Returns:
        the final latents, the mean metric of each prediction, and the denoiser calls.
    """
    steps = min(_MOST_STEPS, max(1, budget // (2 if through else 1)))
    sampler = _with_steps(sampler, steps)
    ivp = sampler.problem(noise, cond)
    z, grid, losses = ivp.initial, ivp.grid, list[float]()
    for i in range(steps):
        leaf = z.detach().requires_grad_()
        with torch.set_grad_enabled(through):
            slope = ivp.velocity(leaf, grid[i])
        with torch.enable_grad():
            values = score(metric, sampler.decode(leaf - grid[i].tau * slope))
            (gradient,) = torch.autograd.grad(values.sum(), leaf)
        losses.append(float(values.detach().mean()))
        z = z + (grid[i + 1].tau - grid[i].tau) * slope.detach()
        z = z - polyak(values.detach() - TARGET, gradient)
    return ivp.flow.sample(z, grid[steps]), losses, steps * (2 if through else 1)
