"""Adjoint matching: each step of the sampler is regressed on the lean adjoint of the untuned model.

    z_{k+1} = m_theta(z_k) + s_k xi_k        the memoryless sampler: ancestral, eta = 1 (DDPM), without a graph
    a_N = lambda grad L(z_N)                 L the metric (-r of a reward) of the decoded image
    a_k = a_{k+1} + grad_z <m_0(z_k) - z_k, a_{k+1}>             m_0 the untuned model's step
    loss = sum_k 1/2 |(m_theta(z_k) - m_0(z_k)) / s_k + s_k a_{k+1}|^2

Domingo-Enrich et al., 2024, arXiv 2409.08861. Its minimum is the model whose images are distributed as those of the
untuned one times exp(-lambda L), so that lambda is the weight of the metric against the KL divergence. theta enters by
the last line alone, one step at a time: no gradient runs through a chain of steps of the tuned model. At the untuned
weights the gradient of this loss is that of lambda L through the whole sampling. With guidance, m is the guided step.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..._types import Cond, Scalar, State, Time
from ...metrics.check import score
from ...optimization.holding import holding
from ...optimization.seeds import generator
from ...samplers.flow_sampler import FlowSampler
from ...solvers import Ancestral, Euler
from ...solvers.base import ends_clean
from ...solvers.integrate import IVP, integrate
from ...solvers.step_noise import NoiseOfItems

__all__ = ["AdjointMatching", "strata"]


@dataclass(frozen=True)
class AdjointMatching:
    """The loss of adjoint matching.

    Args:
        scale: lambda > 0, the metric's weight against the KL divergence from the untuned model.
        steps: number of steps of a trajectory that are regressed, one drawn in each of as many equal parts of it.
        stochastic: whether the trajectories are those of the memoryless SDE; of the ODE otherwise.
    """

    scale: float
    steps: int
    stochastic: bool = True

    def __call__(
        self,
        sampler: FlowSampler,
        metric: Callable[[Tensor], Tensor],
        noise: Tensor,
        cond: Cond,
        variables: Mapping[str, Tensor],
        untuned: Mapping[str, Tensor],
        seeds: tuple[int, ...],
        draw: int,
    ) -> Tensor:
        """Return the loss of each trajectory, with a graph to the variables.

        Args:
            sampler: whose steps are regressed; its solver is not used.
            metric: of the images, lower is better.
            noise: (batch, *shape), where the trajectories start.
            cond: of each row.
            variables: the leaves that are trained.
            untuned: what they held before the training.
            seeds: of the noise in each row's steps, where they have noise.
            draw: seed of the choice of steps, which a batch shares.
        """
        solver = Ancestral(noise=NoiseOfItems(seeds=seeds)) if self.stochastic else Euler()
        ivp = sampler.replace(solver=solver).problem(noise, cond)
        states: list[Tensor] = []

        def keep(_: int, state: State) -> None:
            states.append(state[0].detach())

        with torch.no_grad():
            integrate(_velocity(ivp), (ivp.initial,), ivp.grid, ivp.solver, keep)  # pyright: ignore[reportUnusedCallResult]
        noisy = len(ivp.grid) - ends_clean(ivp.grid, len(ivp.grid) - 1)  # in a step to clean data s_k is 0
        chosen = strata(noisy, self.steps, draw)
        with torch.enable_grad():
            adjoint = self._at_the_end(sampler, metric, ivp, states[-1])
            targets: dict[int, tuple[Tensor, Tensor]] = {}
            with holding(variables, untuned):
                for k in reversed(range(min(chosen), len(ivp.grid))):
                    z = states[k].requires_grad_()
                    step = _step(ivp, z, k)
                    if k in chosen:
                        targets[k] = step.detach(), adjoint
                    (adjoint,) = torch.autograd.grad(step, z, adjoint)
                    states[k] = z.detach()
        total = noise.new_zeros(len(noise))
        for k, (untuned_step, a) in targets.items():
            step = checkpoint(_step, ivp, states[k], k, use_reentrant=False)
            # The difference first: it is small beside the steps, and exactly 0 at the untuned weights.
            width = spread(ivp, k) if self.stochastic else spread(ivp, k) * 0.5**0.5
            error = (step - untuned_step) / width + width * a
            total = total + error.square().flatten(1).sum(1) / 2
        return total * (noisy / len(chosen))

    def _at_the_end(
        self, sampler: FlowSampler, metric: Callable[[Tensor], Tensor], ivp: IVP, final: Tensor
    ) -> Tensor:
        """Return a_N."""
        z = final.requires_grad_()
        images = sampler.decode(ivp.flow.sample(z, ivp.grid[len(ivp.grid)]))
        (gradient,) = torch.autograd.grad(score(metric, images).sum(), z)
        return self.scale * gradient


def strata(count: int, chosen: int, draw: int) -> list[int]:
    """Draw one number in each of some equal parts of 0, ..., count - 1.

    Args:
        count: how many numbers there are.
        chosen: how many parts; all numbers are returned where it is `count` or more.
        draw: the seed.

    Returns:
        the numbers, rising.
    """
    if chosen >= count:
        return list(range(count))
    within = torch.rand(chosen, generator=generator(draw, "steps"), dtype=torch.float64)
    places = (torch.arange(chosen) + within) * (count / chosen)
    return sorted(set(places.long().clamp(max=count - 1).tolist()))


def spread(ivp: IVP, k: int) -> Scalar:
    """Return s_k, the standard deviation of the noise in the memoryless step from z_k.

    s = sigma' sqrt(1 - (rho' / rho)^2) in x; divided by the scale in z.
    """
    now, then = ivp.grid[k], ivp.grid[k + 1]
    ratio = then.sigma * now.alpha / (then.alpha * now.sigma)
    return then.sigma * (1 - ratio**2).sqrt() / then.scale


def _velocity(ivp: IVP) -> Callable[[State, Time], State]:
    return lambda state, time: tuple(ivp.velocity(z, time) for z in state)


def _step(ivp: IVP, z: Tensor, k: int) -> Tensor:
    ((z,), _) = ivp.solver.step(_velocity(ivp), (z,), ivp.grid, k, ())
    return z
