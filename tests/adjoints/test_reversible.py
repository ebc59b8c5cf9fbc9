"""A coupled solver's states are rebuilt, not stored, and its gradient is exact to rounding."""

import pytest
import torch

import adjointdpm as adp
from adjointdpm.adjoints.draws import draws
from adjointdpm.flow.denoisers import GaussianMixture
from tests.conftest import Mixture, unet_sampler
from tests.tiny.gradients import inputs, loss_of
from tests.tiny.memory import peak, sampler_of
from tests.tiny.mixtures import gradient, mixture

INNER = [adp.Euler(), adp.Midpoint(), adp.Heun(), adp.RK4()]


@pytest.mark.parametrize("coupling", [1.0, 0.99])
@pytest.mark.parametrize("inner", INNER, ids=repr)
def test_equal_to_backprop_of_the_same_scheme(inner, coupling):
    solver = adp.Coupled(inner, coupling)
    found = []
    for adjoint in (adp.Backprop(), adp.Reversible()):
        sampler = mixture(adp.VPLinear(), solver=solver, steps=12, adjoint=adjoint)
        found.append(gradient(sampler))
    for g, exact in zip(*reversed(found), strict=True):
        torch.testing.assert_close(g, exact, rtol=1e-9, atol=1e-11 * float(exact.abs().max()))
    stats, calls = sampler.stats, 2 * inner.calls(12)
    assert stats.drift < 1e-10
    assert stats.nfe_forward == 2 * stats.nfe_backward == 2 * calls
    assert len(stats.trace) == 13


def test_every_variable_of_a_guided_unet():
    found = []
    for adjoint in (adp.Backprop(), adp.Reversible()):
        sampler = unet_sampler(
            solver=adp.Coupled(adp.Euler()), steps=4, adjoint=adjoint, grid=adp.grids.log_snr
        )
        noise, cond = inputs(sampler)
        leaves = [noise, *cond.values(), *sampler.parameters()]
        found.append(torch.autograd.grad(loss_of(sampler, noise, cond), leaves))
    for exact, g in zip(*found, strict=True):
        torch.testing.assert_close(g, exact, rtol=1e-7, atol=1e-9 * float(exact.abs().max()))


def test_memory_is_flat_and_no_state_is_stored():
    held, alive = [], []
    for steps in (4, 20):
        sampler = sampler_of(False, steps=steps, adjoint=adp.Reversible(tolerance=1e9))
        sampler = sampler.replace(solver=adp.Coupled(adp.Euler()))
        alive.append(peak(sampler))
        held.append(sampler.stats.bytes_saved)
    assert held[0] == held[1]
    assert alive[1] <= 1.02 * alive[0]


def test_drift_in_float32_is_measured_and_refused():
    """Gaussian data of standard deviation 0.02: the flow contracts 50 times, and running back expands."""
    schedule = adp.VPLinear()
    model = Mixture(schedule, GaussianMixture(schedule, torch.zeros(1, 2), 0.02), (2,))
    drifts = []
    for steps, coupling in ((10, 1.0), (40, 0.4)):
        sampler = adp.FlowSampler(
            model, solver=adp.Coupled(adp.Euler(), coupling), steps=steps, grid=adp.grids.log_snr
        )
        noise = torch.randn(1, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
        sampler = sampler.replace(adjoint=adp.Reversible(tolerance=1e9))
        torch.autograd.grad(sampler.latents(noise, adp.Cond()).sum(), noise)
        drifts.append(sampler.stats.drift)
    assert 0 < drifts[0] < 1e-3 < drifts[1]
    strict = sampler.replace(adjoint=adp.Reversible(tolerance=1e-3))
    with pytest.raises(adp.DriftError, match="Checkpointed"):
        torch.autograd.grad(strict.latents(noise, adp.Cond()).sum(), noise)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: adp.Coupled(adp.AdamsBashforth(2)), "one-step"),
        (lambda: adp.Coupled(coupling=0.0), r"\(0, 1\]"),
        (lambda: adp.Reversible(tolerance=0.0), "positive"),
        (lambda: gradient(mixture(adp.VPLinear(), steps=2, adjoint=adp.Reversible())), "Coupled"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(adp.InputError, match=message):
        make()


def test_draft_lv_averages_the_last_step_over_noised_copies():
    """Written out: the image noised again to the last level, one DDIM step back, n times."""
    sampler = unet_sampler(solver=adp.DPMSolverPP(2), steps=4, adjoint=adp.Truncated(repeats=3, seed=5))
    noise, cond = inputs(sampler)
    noise.requires_grad_(False)
    value = sampler.latents(noise, cond)
    weight = torch.linspace(-1, 1, noise.numel(), dtype=torch.float64).view_as(noise)
    names = ["prompt_embeds", "guidance_scale"]
    found = torch.autograd.grad((value * weight).sum(), [cond[name] for name in names])
    with torch.no_grad():
        plain = sampler.replace(adjoint=adp.Backprop()).latents(noise, cond)
    assert torch.equal(value, plain)
    generator = torch.Generator().manual_seed(
        draws(5, sampler.problem(noise, cond).initial).getrandbits(63)
    )
    a, z = (sampler._time_grid[i] for i in (3, 4))
    total = 0
    for _ in range(3):
        ratio = a.alpha / z.alpha
        eps = torch.randn(plain.shape, generator=generator, dtype=plain.dtype)
        x = ratio * plain + (a.sigma**2 - ratio**2 * z.sigma**2).sqrt() * eps
        eps = sampler.model.denoiser(x, a.t, cond)
        total = total + z.alpha * (x - a.sigma * eps) / a.alpha + z.sigma * eps
    written = torch.autograd.grad((total / 3 * weight).sum(), [cond[name] for name in names])
    for g, exact in zip(found, written, strict=True):
        torch.testing.assert_close(g, exact, rtol=1e-9, atol=1e-12)
    assert sampler.stats.nfe_backward == 3
    again = torch.autograd.grad((sampler.latents(noise, cond) * weight).sum(), cond["prompt_embeds"])[0]
    assert torch.equal(again, found[0])  # as in a run that is repeated or resumed
    other = sampler.replace(adjoint=adp.Truncated(repeats=3)).latents(noise, cond)
    assert not torch.equal(torch.autograd.grad((other * weight).sum(), cond["prompt_embeds"])[0], found[0])
    with pytest.raises(adp.InputError, match="noise"):
        sampler.latents(noise.clone().requires_grad_(), cond)
    for wrong in ({"repeats": 0}, {"repeats": 2, "last": 3}):
        with pytest.raises(adp.InputError, match="repeats"):
            adp.Truncated(**wrong)
