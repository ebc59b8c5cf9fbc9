"""Samplers with noise: right in law, replayed to the bit, and differentiated along their own path."""

import pytest
import torch

import adjointdpm as adp
from adjointdpm.flow.denoisers import GaussianMixture
from tests.conftest import Mixture, scaled_linear, unet_sampler
from tests.tiny.gradients import inputs, loss_of
from tests.tiny.mixtures import gradient, mixture
from tests.tiny.solvers import slope

STD = 0.5
STOCHASTIC = [adp.EulerMaruyama(), adp.Ancestral(), adp.Ancestral(0.5), adp.SDEDPMSolverPP(2)]


def gaussian(schedule, solver, steps):
    model = Mixture(schedule, GaussianMixture(schedule, torch.zeros(1, 1).double(), STD), (1,))
    return adp.FlowSampler(model, solver=solver, grid=adp.grids.log_snr(schedule, steps, end=0.05))


@pytest.mark.parametrize("solver", [*STOCHASTIC, adp.SDEDPMSolverPP(1)], ids=repr)
def test_the_law_of_the_result_converges(solver):
    """Of Gaussian data: the variance at the end, exactly, from how the result depends on every noise."""
    schedule, errors, counts = adp.VPLinear(), [], [40, 80, 160]
    for steps in counts:
        sampler = gaussian(schedule, solver, steps)
        grid, draws = sampler._time_grid, []

        class Recorded(adp.StepNoise):
            def normal(self, start, end, like):
                draws.append(torch.zeros_like(like).requires_grad_())  # noqa: B023
                return draws[-1]  # noqa: B023

        from dataclasses import replace

        sampler = sampler.replace(solver=replace(solver, noise=Recorded()), adjoint=adp.Backprop())
        noise = torch.zeros(1, 1, dtype=torch.float64, requires_grad=True)
        shares = torch.autograd.grad(sampler.latents(noise, adp.Cond()).sum(), [noise, *draws])
        found = sum(float(share) ** 2 for share in shares)
        exact = float(grid[steps].alpha ** 2 * STD**2 + grid[steps].sigma ** 2)
        errors.append(abs(found - exact) / exact)
    assert errors[-1] < 0.05
    assert slope(errors, counts) > 0.8


def test_order_one_is_ddpm_and_no_noise_is_ddim():
    noise = torch.randn(2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for schedule in (adp.VPLinear(), adp.RectifiedFlow()):
        with torch.no_grad():
            ends = [
                mixture(schedule, solver=solver, steps=6).latents(noise, adp.Cond())
                for solver in (adp.SDEDPMSolverPP(1), adp.Ancestral(1.0), adp.Ancestral(0.0), adp.Euler())
            ]
        torch.testing.assert_close(ends[0], ends[1], rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(ends[2], ends[3], rtol=1e-10, atol=1e-12)
        assert float((ends[0] - ends[2]).abs().max()) > 1e-3


def test_the_same_step_as_diffusers_own():
    """diffusers' `sde-dpmsolver++`, given the same noise."""
    from diffusers import DPMSolverMultistepScheduler

    schedule = adp.VPDiscrete(scaled_linear())
    sampler = unet_sampler(solver=adp.SDEDPMSolverPP(2), steps=5, guidance_scale=2.0)
    with torch.no_grad():
        noise, cond = inputs(sampler, requires_grad=False)
        theirs = DPMSolverMultistepScheduler(
            trained_betas=1 - (scaled_linear()[1:] / scaled_linear()[:-1]).numpy(),
            algorithm_type="sde-dpmsolver++",
            lower_order_final=False,
            final_sigmas_type="sigma_min",
        )
        grid, x = sampler._time_grid, noise
        theirs.sigmas = torch.stack([grid[i].sigma / grid[i].alpha for i in range(6)])
        theirs.timesteps = grid.times[:-1]
        theirs.num_inference_steps, theirs.lower_order_nums = 5, 0
        theirs.model_outputs, theirs._step_index = [None, None], 0
        for i in range(5):
            eps = sampler.model.denoiser(x, grid[i].t, cond)
            xi = adp.StepNoise().normal(grid[i].tau, grid[i + 1].tau, x)
            x = theirs.step(eps, grid.times[i], x, variance_noise=xi).prev_sample
        own = sampler.latents(noise, cond)
    assert schedule.start == 999
    torch.testing.assert_close(own, x.double(), rtol=1e-5, atol=1e-6 * float(x.abs().max()))


@pytest.mark.parametrize("solver", STOCHASTIC, ids=repr)
def test_gradients_along_the_path(solver):
    """Exact adjoints, the transpose and plain autograd agree on the noise that was drawn."""
    found = []
    for adjoint in (adp.Backprop(), adp.Checkpointed(), adp.CoarseAdjoint()):
        found.append(gradient(mixture(adp.VPLinear(), solver=solver, steps=8, adjoint=adjoint)))
    for exact, checkpointed, transposed in zip(*found, strict=True):
        assert torch.equal(exact, checkpointed)
        torch.testing.assert_close(transposed, exact, rtol=1e-10, atol=1e-12 * float(exact.abs().max()))


def test_a_finite_difference_with_replayed_noise():
    sampler = mixture(adp.VPLinear(), solver=adp.SDEDPMSolverPP(2), steps=8)
    noise, cond = torch.randn(1, 2, dtype=torch.float64, requires_grad=True), adp.Cond()
    (found,) = torch.autograd.grad(sampler.latents(noise, cond).sum(), noise)
    with torch.no_grad():
        up, down = (sampler.latents(noise + h, cond).sum() for h in (1e-6, -1e-6))
    assert float(up - down) / 2e-6 == pytest.approx(float(found.sum()), rel=1e-6)


@pytest.mark.parametrize(
    ("solver", "fewer"),
    [(adp.EulerMaruyama(), 1), (adp.SDEDPMSolverPP(2), 1), (adp.Ancestral(0.5), 2)],
    ids=repr,
)
def test_the_deterministic_adjoint_converges_to_the_paths_gradient(solver, fewer):
    """The augmented ODE with the SDE's drift, over the same noisy states, with as many or half the nodes."""
    errors, counts = [], [100, 200, 400]
    for steps in counts:
        sampler = mixture(adp.VPLinear(), solver=solver, steps=steps)
        exact = gradient(sampler)
        adjoint = adp.Continuous(steps=steps // fewer, solver=adp.Euler())
        found = gradient(sampler.replace(adjoint=adjoint))
        errors.append(max(float((g - e).norm() / e.norm()) for g, e in zip(found, exact, strict=True)))
    assert errors[-1] < 0.3
    assert slope(errors, counts) > 0.6


def test_every_variable_of_a_guided_unet():
    found = []
    for adjoint in (adp.Backprop(), adp.Checkpointed(), adp.CoarseAdjoint()):
        sampler = unet_sampler(solver=adp.SDEDPMSolverPP(2), steps=4, adjoint=adjoint)
        noise, cond = inputs(sampler)
        leaves = [noise, *cond.values(), *sampler.parameters()]
        found.append(torch.autograd.grad(loss_of(sampler, noise, cond), leaves))
    for exact, same, transposed in zip(*found, strict=True):
        assert torch.equal(exact, same)
        torch.testing.assert_close(transposed, exact, rtol=1e-10, atol=1e-12 * float(exact.abs().max()))


def sampled(adjoint):
    return gradient(mixture(adp.VPLinear(), solver=adp.Ancestral(), steps=2, adjoint=adjoint))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: adp.Ancestral(1.5), "eta"),
        (lambda: adp.SDEDPMSolverPP(3), "orders 1 and 2"),
        (lambda: gradient(mixture(adp.RectifiedFlow(), solver=adp.EulerMaruyama(), steps=2)), "Ancestral"),
        (
            lambda: gradient(
                mixture(
                    adp.VPLinear(),
                    solver=adp.Ancestral(),
                    steps=2,
                    adjoint=adp.Continuous(solver=adp.Euler(), trajectory="resolved"),
                )
            ),
            "stored",
        ),
        (
            lambda: gradient(
                mixture(
                    adp.VPLinear(),
                    solver=adp.Ancestral(),
                    steps=2,
                    adjoint=adp.Continuous(),
                )
            ),
            "one call a step",
        ),
        (lambda: sampled(adp.CoarseAdjoint(solver=adp.Euler())), "does not solve the SDE"),
        (lambda: sampled(adp.CoarseAdjoint(tolerance=0.1)), "other noise"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(adp.InputError, match=message):
        make()
