"""Direct-Align: the finished sample is noised with known noise, denoised by one step, and recovered.

    x_s = alpha_s x_0 + sigma_s eps,     z' = z_s + (tau' - tau) v(sg(z_s)),     x0hat = (x' - sigma' eps) / alpha'

with x = scale z at both instants. For a rectified flow x_s = s eps + (1 - s) x_0, x' = x_s + (s' - s) v and
x0hat = (x' - s' eps) / (1 - s'), the published form.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .._types import GraphPolicy, InputError, Stats
from ..solvers.integrate import IVP, integrate
from .base import wants_gradient
from .discrete import Backprop
from .draws import draws
from .surrogate import Surrogate, Velocity, followed, straight_through, total

__all__ = ["DirectAlign"]


@dataclass(frozen=True)
class DirectAlign(Surrogate):
    """The gradient of one step from a noised copy of the finished sample: Direct-Align of SRPO (arXiv 2509.06942).

        x0hat = (x' - sigma' eps) / alpha',     x' the step from x_s = alpha_s x_0 + sigma_s eps

        memory: 1 state + 1 graph;    time: N f + 2 f + b

    The noise eps is the one that the sampling started from, s a step of the grid at random. Since eps is known, the
    sample is recovered at any noise level, so that early steps are trained at the cost of one call. Use it to train
    weights with any solver, those that add noise included. Do not use it for noise, whose gradient is refused, nor
    where the length of the gradient matters, which depends on s.

    The published method evaluates the reward on x0hat. Here the image is the sampler's own, and the gradient of x0hat
    is taken at it; the discount by s and the relative reward of SRPO belong to the metric. The finished latents count
    as clean, also where the grid ends above sigma = 0. The step is one of Euler in the coordinates z and tau of this
    library, the published one for a rectified flow and one of DDIM for a model of noise.

    Args:
        stride: the number of the grid's steps that the one step spans, at least 1.
        seed: decides s, together with the noise: the same for the same noise; see `DRTune`.

    Raises:
        InputError: stride < 1, or more than the steps of the grid; or the noise or the time grid requires a gradient.

    References:
        Shen et al., 2025, arXiv 2509.06942.

    Examples:
        >>> import adjointdpm as adp
        >>> sampler = adp.load_bundled("emoji", steps=6, adjoint=adp.DirectAlign())
        >>> cond = sampler.encode("a cat").requires_grad_()
        >>> sampler(sampler.noise(1), cond).mean().backward()
        >>> sampler.stats.nfe_backward
        1
    """

    stride: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.stride < 1:
            raise InputError(f"stride is a number of steps, at least 1, but is {self.stride}")

    def solve(self, ivp: IVP, stats: Stats) -> Tensor:
        if not wants_gradient(ivp):
            return Backprop().solve(ivp, stats)
        self.refuse(ivp)
        grid, N = ivp.grid, len(ivp.grid)
        if self.stride > N:
            raise InputError(
                f"{self!r} spans more than the {N} steps of the sampler; give a stride of at most {N}"
            )
        velocity = Velocity(ivp, stats)
        with torch.no_grad():
            (final,) = integrate(
                lambda state, time: (velocity(state[0], time, GraphPolicy.NO_GRAPH),),
                (ivp.initial,),
                grid,
                ivp.solver,
            )
        i = draws(self.seed, ivp.initial).randint(0, N - self.stride)
        first, now, then, end = grid[0], grid[i], grid[i + self.stride], grid[N]
        eps = ivp.initial * (first.scale / grid.schedule.prior_std(first.t))
        noised = (now.alpha * (end.scale * final) + now.sigma * eps) / now.scale
        v = velocity(noised, now, GraphPolicy.RECOMPUTE)
        step = float(then.scale * (then.tau - now.tau) / (then.alpha * end.scale))
        return followed(straight_through(final, total({0: step}, {0: v})), ivp, stats)
