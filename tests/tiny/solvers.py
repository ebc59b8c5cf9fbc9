"""Every deterministic solver, a schedule of each kind, and the slope of errors over steps."""

import torch

import adjointdpm as adp
from adjointdpm.flow.denoisers import GaussianMixture
from tests.conftest import Mixture, scaled_linear

SOLVERS = [
    adp.Euler(),
    adp.Midpoint(),
    adp.Heun(),
    adp.RK4(),
    *(adp.AdamsBashforth(order) for order in (1, 2, 3, 4)),
    adp.DPMSolverPP(1),
    adp.DPMSolverPP(2),
]
SCHEDULES = {
    "vp-discrete": adp.VPDiscrete(scaled_linear()),
    "vp-linear": adp.VPLinear(),
    "vp-cosine": adp.VPCosine(),
    "edm": adp.EDMSchedule(sigma_max=10.0),
    "rectified-flow": adp.RectifiedFlow(),
}


def karras_like(schedule, steps):
    """An uneven grid for every schedule: karras, or one clear of rho = 0 and infinity,

    next to which even steps in t are steps in lambda that never get small."""
    if schedule.bounded:
        u = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        return 0.9 - 0.88 * u * (1.4 - 0.4 * u)
    return adp.grids.karras(schedule, steps)


def slope(errors, steps):
    """Of log error against log step, through the last points."""
    n, e = torch.tensor(steps).double().log(), torch.tensor(errors).log()
    return -float(((n - n.mean()) * (e - e.mean())).sum() / ((n - n.mean()) ** 2).sum())


class Watched(GaussianMixture):
    """Remembers at which times it is evaluated."""

    def forward(self, x, t, cond):
        self.times.append(float(t))
        return super().forward(x, t, cond)


def down_to_zero(schedule, solver, prediction, adjoint=None, steps=5):
    """Latents, the times that were evaluated, and the gradients of noise and means, on a grid down to sigma = 0."""
    means = torch.tensor([[1.0, 0.6], [-0.8, 1.1]], dtype=torch.float64)
    mixture = Watched(schedule, means, 0.3, prediction)
    mixture.times = []
    grid = torch.linspace(schedule.start, schedule.limit, steps + 1, dtype=torch.float64)
    sampler = adp.FlowSampler(Mixture(schedule, mixture, (2,)), solver=solver, grid=grid, adjoint=adjoint)
    noise = torch.ones(1, 2, dtype=torch.float64, requires_grad=True)
    end = sampler.latents(noise, adp.Cond())
    found = torch.autograd.grad(end.square().sum(), [noise, mixture.means])
    return end, mixture.times, found, sampler
