"""Distance to the untuned model, at noised versions of the images that a step made: guards against reward hacking.

    x = alpha x0 + sigma eps        x0 the latents of the step's images, log rho uniform, rho = sigma / alpha

    KL    log(rho_max / rho_min) E |eps_theta(x) - eps_0(x)|^2       in nats, of the memoryless sampler's trajectories
    norm  E max(0, |v_theta(x)| / |v_0(x)| - 1)                      v the velocity of the ODE, dz/dtau

The first line is the path measures' divergence, int |eps_theta - eps_0|^2 d log rho, by Girsanov's theorem for the SDE
dy = 2 eps drho + sqrt(2 rho) dW (Song et al., 2021, arXiv 2011.13456). For a rectified flow it is the regularizer of
adjoint matching (arXiv 2409.08861). The second is NormGuard's (2026, arXiv 2606.27771), which found that tuning to a
reward inflates the velocity by 5 to 15 %.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ...flow.per_sample import normal_rows
from ...optimization.holding import holding
from ...optimization.seeds import generator, key
from ...solvers.integrate import IVP

__all__ = ["ReferenceDistance"]

END = 1e-3  # of sigma / (alpha + sigma): log rho is not finite at 0 and 1


@dataclass(frozen=True)
class ReferenceDistance:
    """The weighted guards.

    Args:
        kl_weight: of the divergence, at least 0.
        norm_weight: of the excess of the velocity's norm, at least 0.
    """

    kl_weight: float = 0.0
    norm_weight: float = 0.0

    @property
    def used(self) -> bool:
        """Whether there is anything to compute."""
        return self.kl_weight > 0 or self.norm_weight > 0

    def __call__(
        self,
        ivp: IVP,
        latents: Tensor,
        variables: Mapping[str, Tensor],
        untuned: Mapping[str, Tensor],
        seeds: list[int],
        draw: int,
    ) -> Tensor:
        """Return the guards' loss of each row, with a graph to the variables.

        Args:
            ivp: the sampling's problem, whose denoiser, conditioning and grid are taken.
            latents: (batch, *latent_shape), x0.
            variables: the leaves that are trained.
            untuned: what they held before the training.
            seeds: of eps, one a row.
            draw: seed of the instant, which a batch shares.
        """
        schedule, denoiser = ivp.flow.schedule, ivp.flow.denoiser
        ends = [ivp.grid[len(ivp.grid)], ivp.grid[0]]
        shares = [min(max(float(t.sigma / (t.alpha + t.sigma)), END), 1 - END) for t in ends]
        low, high = (math.log(s / (1 - s)) for s in shares)
        u = torch.rand((), generator=generator(draw, "instant"), dtype=torch.float64)
        (time,) = schedule.at(schedule.time(torch.sigmoid(low + u * (high - low))).reshape(1))
        eps = normal_rows([key(seed, "eps") for seed in seeds], latents.detach())
        x = time.alpha * latents.detach() + time.sigma * eps

        def found() -> tuple[Tensor, Tensor]:
            out = denoiser(x, time.t, ivp.cond)
            noise = denoiser.prediction.eps(out, x, time)
            return noise, denoiser.prediction.drift(out, x, time) if schedule.bounded else noise

        with torch.no_grad(), holding(variables, untuned):
            eps_0, v_0 = found()
        eps_theta, v_theta = found()
        kl = (high - low) * (eps_theta - eps_0).square().flatten(1).sum(1)
        norm_theta, norm_0 = (torch.linalg.vector_norm(v.flatten(1), dim=1) for v in (v_theta, v_0))
        return self.kl_weight * kl + self.norm_weight * (norm_theta / norm_0 - 1).relu()
