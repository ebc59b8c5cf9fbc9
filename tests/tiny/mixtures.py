"""Gradients of a mixture's sampler: noise, conditioning and means."""

import torch

import adjointdpm as adp
from adjointdpm.flow.denoisers import Prediction
from tests.conftest import Mixture, standard_mixture
from tests.tiny.solvers import karras_like


def leaves_of(sampler):
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(3, *sampler.model.latent_shape, dtype=torch.float64, generator=generator)
    cond = sampler.encode([""] * 3).requires_grad_()
    return noise.requires_grad_(), cond


def gradient(sampler):
    noise, cond = leaves_of(sampler)
    weight = torch.tensor([[1.0, -0.5], [0.3, 0.8], [-0.7, 0.2]], dtype=torch.float64)
    loss = (sampler.latents(noise, cond) * weight).sum()
    leaves = [noise, cond["shift"], sampler.model.denoiser.means]
    return torch.autograd.grad(loss, leaves)


def gentle(schedule, steps):
    """Where coarse steps are already in the asymptotic regime of the highest order tested."""
    if schedule.bounded:
        return karras_like(schedule, steps)
    return adp.grids.log_snr(schedule, steps, end=0.05)


def mixture(schedule, **settings):
    prediction = Prediction.VELOCITY if schedule.bounded else Prediction.EPS
    model = Mixture(schedule, standard_mixture(schedule, prediction), (2,))
    return adp.FlowSampler(model, grid=gentle, **settings)


SCHEDULES = {"vp": adp.VPLinear(), "rectified-flow": adp.RectifiedFlow()}
