"""Log-likelihoods against the closed form of Gaussians and mixtures."""

import math

import pytest
import torch

import adjointdpm as adp
from adjointdpm.adjoints.likelihood import change_of_variables, rademacher
from adjointdpm.flow.denoisers import GaussianMixture, Prediction
from adjointdpm.flow.grids import TimeGrid
from adjointdpm.flow.probability_flow import ProbabilityFlow
from adjointdpm.solvers.integrate import IVP
from tests.conftest import BareModel, unet_sampler

# With the usual beta_max of 20 the noisy end is 0.005 nats from a standard normal distribution.
FLOWS = {"vp": adp.VPLinear(beta_max=40.0), "rectified-flow": adp.RectifiedFlow()}


class Flat(BareModel):
    """A mixture over images of 1 x 1 pixel and two channels."""

    def encode(self, prompts, negative, guidance_scale):
        return adp.Cond()

    def encode_image(self, images):
        return images


class OfImages(adp.Denoiser):
    def __init__(self, mixture):
        super().__init__()
        self.mixture, self.prediction = mixture, mixture.prediction

    def forward(self, x, t, cond):
        return self.mixture(x.flatten(1), t, cond).view_as(x)


def sampler_of(schedule, means, std, steps):
    prediction = Prediction.VELOCITY if schedule.bounded else Prediction.EPS
    mixture = GaussianMixture(schedule, torch.as_tensor(means, dtype=torch.float64), std, prediction)
    model = Flat(schedule, OfImages(mixture), (2, 1, 1))
    end = 0.02 if schedule.bounded else 1e-3
    grid = lambda s, n: (  # noqa: E731
        adp.grids.uniform(s, n, end=end) if s.bounded else adp.grids.log_snr(s, n, end=end)
    )
    return adp.FlowSampler(model, steps=steps, grid=grid)


def closed_form(sampler, x):
    """log p of x at the clean end: each component is a Gaussian of deviation sqrt(alpha^2 s^2 + sigma^2)."""
    mixture, (time,) = sampler.model.denoiser.mixture, sampler.model.schedule.at(sampler.times()[-1:])
    variance = time.alpha**2 * mixture.std**2 + time.sigma**2
    away = (x.flatten(1)[:, None] - time.alpha * mixture.means).square().sum(-1)
    parts = -away / (2 * variance) - math.log(2 * math.pi) - variance.log()
    return parts.logsumexp(1) - math.log(len(mixture.means))


def points():
    return torch.randn(6, 2, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", FLOWS)
@pytest.mark.parametrize(
    "means", [[[0.3, -0.2]], [[1.0, 0.6], [-0.8, 1.1], [-0.5, -0.9]]], ids=["one", "mixture"]
)
def test_the_exact_divergence_gives_the_closed_form(name, means):
    sampler = sampler_of(FLOWS[name], means, 0.5, 60)
    with torch.no_grad():
        found = sampler.log_likelihood(points(), adp.Cond(), probes=None, solver=adp.RK4())
        torch.testing.assert_close(found.value, closed_form(sampler, points()), rtol=1e-3, atol=1e-3)
    assert found.standard_error.count_nonzero() == 0
    torch.testing.assert_close(found.bits_per_dimension, -found.value / (2 * math.log(2)))


def test_probes_agree_with_the_exact_divergence_within_their_standard_error():
    sampler = sampler_of(FLOWS["vp"], [[1.0, 0.6], [-0.8, 1.1], [-0.5, -0.9]], 0.3, 20)
    with torch.no_grad():
        exact = sampler.log_likelihood(points(), adp.Cond(), probes=None).value
        found = sampler.log_likelihood(points(), adp.Cond(), probes=64)
        again = sampler.log_likelihood(points(), adp.Cond(), probes=64)
    assert torch.equal(found.value, again.value)
    assert bool(((found.value - exact).abs() < 4 * found.standard_error + 1e-9).all())
    assert float(found.standard_error.max()) > 0


def test_the_gradient_of_the_image_is_the_score():
    sampler = sampler_of(FLOWS["vp"], [[1.0, 0.6], [-0.8, 1.1]], 0.5, 40)
    x = points().requires_grad_()
    (found,) = torch.autograd.grad(
        sampler.log_likelihood(x, adp.Cond(), probes=None, solver=adp.RK4()).value.sum(), x
    )
    (score,) = torch.autograd.grad(closed_form(sampler, x).sum(), x)
    torch.testing.assert_close(found, score, rtol=1e-2, atol=1e-2)


def test_the_gradient_of_a_networks_prompt_is_that_of_a_finite_difference():
    sampler = unet_sampler(Prediction.EPS, steps=3, guidance_scale=1.0)
    cond = sampler.encode([""]).requires_grad_()
    schedule, denoiser = sampler.model.schedule, sampler.model.denoiser
    grid = TimeGrid(schedule, sampler.times())
    clean = torch.randn(1, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    probes = rademacher((2, 4, 4), 2, 0, clean)

    def value(embeds):
        ivp = IVP(
            ProbabilityFlow(schedule, denoiser),
            adp.Euler(),
            grid,
            clean,
            adp.Cond({"prompt_embeds": embeds}),
        )
        return change_of_variables(ivp, adp.Stats(), probes)[1].sum()

    embeds = cond["prompt_embeds"]
    (gradient,) = torch.autograd.grad(value(embeds), embeds)
    move = 1e-4 * torch.randn_like(embeds)
    with torch.no_grad():
        change = (value(embeds + move) - value(embeds - move)) / 2
    torch.testing.assert_close(change, (gradient * move).sum(), rtol=1e-3, atol=0)


def test_what_gives_no_likelihood_is_refused():
    sampler = sampler_of(FLOWS["vp"], [[0.0, 0.0]], 0.5, 4)
    with pytest.raises(adp.InputError, match="probes"):
        sampler.log_likelihood(points(), adp.Cond(), probes=0)
    with pytest.raises(adp.InputError, match="solver of the ODE"):
        sampler.log_likelihood(points(), adp.Cond(), solver=adp.EulerMaruyama())
