"""The adjoint SDE is its own recursion along the sampler's path, and the exact gradient's limit at many steps."""

import pytest
import torch

import adjointdpm as adp
from adjointdpm.attacks import surrogate
from adjointdpm.attacks.sde_adjoint import SdeAdjoint
from tests.samplers.test_purified import Classify, sampler

pytest.importorskip("torchsde")


def gradient_of(purified, image):
    leaf = image.clone().requires_grad_()
    logits = purified(leaf)
    return logits.detach(), torch.autograd.grad(logits.square().sum(), leaf)[0]


def test_it_solves_the_state_and_its_adjoint_again_along_the_same_noise():
    ours = sampler(adp.EulerMaruyama(eta=0.7, noise=adp.StepNoise(3)), steps=6).replace(
        adjoint=SdeAdjoint()
    )
    cond, noise = ours.encode("a cat"), ours.noise(2, 1).double().requires_grad_()
    latents = ours.latents(noise, cond)
    with torch.no_grad():
        plain = ours.replace(adjoint=adp.Backprop()).latents(noise, cond)
    assert torch.allclose(latents, plain, rtol=1e-10)
    cotangent = torch.randn_like(latents)
    (found,) = torch.autograd.grad((latents * cotangent).sum(), noise)
    ivp = ours.problem(noise.detach(), cond)
    grid, n, eta, drift = ivp.grid, len(ivp.grid), 0.7, 1 + 0.7**2
    y, a = latents.detach() / grid[n].scale, cotangent * grid[n].scale
    for i in reversed(range(n)):  # each at the arrival of the forward step, with its noise taken off again
        now, then = grid[i], grid[i + 1]
        z = y.requires_grad_()
        e = ivp.velocity(z, then)
        (pulled,) = torch.autograd.grad(e, z, a)
        h, spread = then.tau - now.tau, eta * (now.tau**2 - then.tau**2).sqrt()
        y = (z - drift * h * e - spread * adp.StepNoise(3).normal(now.tau, then.tau, z)).detach()
        a = a + drift * h * pulled
    expected = a * ours.model.schedule.prior_std(grid[0].t) / grid[0].scale
    assert torch.allclose(found, expected, rtol=1e-8)
    assert (ours.stats.nfe_forward, ours.stats.nfe_backward) == (12, 6)


def test_it_comes_close_to_the_exact_gradient_as_steps_are_halved():
    """Its distance from the gradient of the steps falls at first order."""
    away = []
    for steps in (20, 40, 80):
        ours = sampler(adp.EulerMaruyama(eta=0.5), steps=steps)
        purified = adp.Purified(ours, Classify(), t=0.3, steps=steps, seed=4)
        shape = (1, *ours.image_shape)
        image = torch.rand(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        (logits, other), (same, exact) = (
            gradient_of(surrogate(purified, name), image) for name in ("sde-adjoint", "exact")
        )
        assert torch.allclose(logits, same, rtol=1e-9)
        away.append(float((other - exact).norm() / exact.norm()))
    assert 1e-6 < away[2] < away[1] < away[0]
    assert away[0] / away[2] > 2


def test_what_it_is_not_for_is_refused():
    image = torch.rand(1, *sampler(adp.Euler(), steps=2).image_shape, dtype=torch.float64).requires_grad_()
    for solver in (adp.Euler(), adp.SDEDPMSolverPP(), adp.EulerMaruyama(eta=0.0)):
        purified = adp.Purified(sampler(solver, steps=2), Classify(), t=0.5)
        with pytest.raises(adp.InputError, match="take solver=EulerMaruyama"):
            surrogate(purified, "sde-adjoint")(image)
    ours = sampler(adp.EulerMaruyama(), steps=2)
    purified = surrogate(adp.Purified(ours, Classify(), t=0.5), "sde-adjoint")
    ours.model.denoiser.requires_grad_(True)
    with pytest.raises(adp.InputError, match="gives the gradient of the image alone"):
        purified(image)
