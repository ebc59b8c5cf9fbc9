"""The paper's adjoint converges to the gradient of the exact flow at its solver's order."""

import math

import pytest
import torch

import adjointdpm as adp
from adjointdpm.flow.denoisers import GaussianMixture
from adjointdpm.flow.grids import TimeGrid
from tests.conftest import Mixture, unet_sampler
from tests.tiny.mixtures import SCHEDULES, gradient, leaves_of, mixture
from tests.tiny.solvers import SOLVERS as ALL_SOLVERS
from tests.tiny.solvers import slope

SOLVERS = [adp.Euler(), adp.Midpoint(), adp.Heun(), adp.RK4(), adp.AdamsBashforth(2), adp.DPMSolverPP(2)]
VARIABLES = ("noise", "shift", "means")


@pytest.fixture(scope="module", params=SCHEDULES.values(), ids=SCHEDULES.keys())
def truth(request):
    """The exact flow's gradient, by exact differentiation of a sampler far finer than those tested."""
    return request.param, gradient(mixture(request.param, solver=adp.RK4(), steps=1000))


def check_slopes(solver, adjoint, truth, steps):
    """Errors of the gradients of noise, conditioning and weights fall at the solver's order."""
    schedule, exact = truth
    errors = []
    for n in steps:
        found = gradient(mixture(schedule, solver=solver, steps=n, adjoint=adjoint))
        errors.append([float((g - e).norm() / e.norm()) for g, e in zip(found, exact, strict=True)])
    for name, each in zip(VARIABLES, zip(*errors, strict=True), strict=True):
        if each[-1] < 1e-10:  # converged beyond what the reference can tell
            continue
        assert slope(list(each), steps) == pytest.approx(solver.order, abs=0.2), name


def steps_for(solver):
    if isinstance(solver, adp.AdamsBashforth) and solver.order > 2:
        return [320, 640]
    return [160, 320] if isinstance(solver, adp.RK4) else [120, 240, 480]


@pytest.mark.parametrize("trajectory", ["stored", "resolved"])
@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_the_papers_form_converges_at_the_solvers_order(solver, trajectory, truth):
    adjoint = adp.Continuous(solver=solver, trajectory=trajectory)
    check_slopes(solver, adjoint, truth, steps_for(solver))


@pytest.mark.parametrize("solver", ALL_SOLVERS, ids=repr)
def test_exact_gradients_converge_at_the_solvers_order(solver, truth):
    check_slopes(solver, adp.Backprop(), truth, steps_for(solver))


@pytest.mark.parametrize("trajectory", ["stored", "resolved"])
def test_gaussian_gradient_is_the_closed_form(trajectory):
    """dx_end/dx_start of a Gaussian flow is the ratio of the standard deviations, whatever x is."""
    schedule = adp.VPLinear()
    model = Mixture(schedule, GaussianMixture(schedule, torch.zeros(1, 2).double(), 0.5), (2,))
    adjoint = adp.Continuous(trajectory=trajectory)
    sampler = adp.FlowSampler(model, solver=adp.RK4(), steps=200, grid=adp.grids.log_snr, adjoint=adjoint)
    noise, cond = leaves_of(sampler)
    (found,) = torch.autograd.grad(sampler.latents(noise, cond).sum(), noise)
    start, end = (
        TimeGrid(schedule, adp.grids.log_snr(schedule, 200))[0],
        TimeGrid(schedule, adp.grids.log_snr(schedule, 200))[200],
    )
    ratio = ((end.alpha**2 / 4 + end.sigma**2) / (start.alpha**2 / 4 + start.sigma**2)).sqrt()
    torch.testing.assert_close(found, ratio.expand_as(found), rtol=1e-6, atol=0)


def test_arrival_point_is_what_the_paper_release_computes():
    """Euler backwards over stored states takes each product at the step's arrival point.

    On a Gaussian with two steps both gradients are short enough to write down.
    """
    schedule = adp.VPLinear()
    model = Mixture(schedule, GaussianMixture(schedule, torch.zeros(1, 2).double(), 0.5), (2,))
    grid = TimeGrid(schedule, torch.tensor([1.0, 0.5, 0.1], dtype=torch.float64))
    slopes = [float(t.tau / (0.25 + t.tau**2)) for t in (grid[0], grid[1], grid[2])]  # d eps / d y
    h = [float(grid[i + 1].tau - grid[i].tau) for i in (0, 1)]
    scale = float(grid[2].scale * schedule.prior_std(grid[0].t) / grid[0].scale)
    for adjoint, at in (
        (adp.Checkpointed(), (0, 1)),
        (adp.Continuous(solver=adp.Euler()), (1, 2)),
    ):
        sampler = adp.FlowSampler(model, solver=adp.Euler(), grid=grid.times, adjoint=adjoint)
        noise, cond = leaves_of(sampler)
        (found,) = torch.autograd.grad(sampler.latents(noise, cond).sum(), noise)
        written = scale * (1 + h[0] * slopes[at[0]]) * (1 + h[1] * slopes[at[1]])
        torch.testing.assert_close(found, torch.full_like(found, written), rtol=1e-10, atol=0)


def test_fewer_backward_than_forward_steps():
    schedule = adp.VPLinear()
    exact = gradient(mixture(schedule, solver=adp.RK4(), steps=400))
    for steps, tolerance in ((100, 0.06), (50, 0.25)):
        adjoint = adp.Continuous(steps=steps, solver=adp.AdamsBashforth(2))
        sampler = mixture(schedule, solver=adp.DPMSolverPP(2), steps=200, adjoint=adjoint)
        found = gradient(sampler)
        assert sampler.stats.nfe_forward == 200 + steps
        assert sampler.stats.nfe_backward == steps
        for g, e in zip(found, exact, strict=True):
            assert float((g - e).norm() / e.norm()) < tolerance


def test_stored_trajectory_is_interpolated_at_fourth_order():
    """M that does not divide N: every backward node lies between forward ones."""
    schedule = adp.VPLinear()
    exact = gradient(mixture(schedule, solver=adp.RK4(), steps=600))
    errors = []
    for n in (41, 82, 164):
        adjoint = adp.Continuous(steps=n - 3)
        found = gradient(mixture(schedule, solver=adp.RK4(), steps=n, adjoint=adjoint))
        errors.append(float((found[0] - exact[0]).norm() / exact[0].norm()))
    assert slope(errors, [41, 82, 164]) > 3.7


def test_all_variables_in_one_backward_pass_on_a_unet():
    """Noise, prompt, negative prompt, guidance scale and every weight, near the exact ones at fine steps."""
    exact, found = [], []
    for store, adjoint in ((exact, adp.Checkpointed()), (found, adp.Continuous())):
        sampler = unet_sampler(solver=adp.RK4(), steps=40, grid=adp.grids.log_snr, adjoint=adjoint)
        noise = torch.randn(1, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        cond = sampler.encode("a prompt").requires_grad_()
        loss = sampler.latents(noise.requires_grad_(), cond).square().sum()
        store += torch.autograd.grad(loss, [noise, *cond.values(), *sampler.parameters()])
    whole = math.sqrt(sum(float(e.square().sum()) for e in exact[4:]))
    for i in range(4):
        assert float((found[i] - exact[i]).norm() / exact[i].norm()) < 2e-3
    assert (
        math.sqrt(sum(float((f - e).square().sum()) for f, e in zip(found[4:], exact[4:], strict=True)))
        < 2e-3 * whole
    )


def test_writes_no_grad_behind_autograds_back():
    sampler = unet_sampler(steps=3, adjoint=adp.CoarseAdjoint())
    noise, cond = sampler.noise(1), sampler.encode("a prompt")
    loss = sampler.latents(noise.requires_grad_(), cond).sum()
    torch.autograd.grad(loss, noise)
    assert all(p.grad is None for p in sampler.parameters())


def test_sampling_without_a_gradient_remembers_nothing():
    sampler = unet_sampler(steps=3, adjoint=adp.CoarseAdjoint())
    with torch.no_grad():
        plain = sampler.replace(adjoint=adp.Backprop()).latents(
            sampler.noise(1), sampler.encode("a prompt")
        )
        assert torch.equal(sampler.latents(sampler.noise(1), sampler.encode("a prompt")), plain)
    assert sampler.stats.nfe_forward == 3
    assert sampler.stats.bytes_saved == 0
