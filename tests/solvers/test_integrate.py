"""Samples against the exact flow: order of convergence, and grids that end at sigma = 0."""

import pytest
import torch

import adjointdpm as adp
from adjointdpm.flow.denoisers import GaussianMixture, Prediction
from adjointdpm.flow.grids import TimeGrid
from tests.conftest import Mixture, scaled_linear, standard_mixture
from tests.tiny.solvers import SCHEDULES, SOLVERS, down_to_zero, karras_like, slope


def steps_for(solver):
    """Where each solver has settled into its order and is not yet at rounding."""
    return [160, 320, 640] if isinstance(solver, adp.AdamsBashforth) else [80, 160, 320]


@torch.no_grad()
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_samples_converge_to_the_exact_gaussian_flow(solver, schedule):
    mean = torch.tensor([[0.7, -0.4]], dtype=torch.float64)
    # At pure noise (alpha = 0) eps says nothing about x0; a velocity does.
    prediction = Prediction.VELOCITY if schedule.bounded else Prediction.EPS
    model = Mixture(schedule, GaussianMixture(schedule, mean, 0.5, prediction), (2,))
    steps = steps_for(solver)
    noise = torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    errors = []
    for n in steps:
        sampler = adp.FlowSampler(model, solver=solver, steps=n, grid=karras_like)
        grid = TimeGrid(schedule, karras_like(schedule, n))
        start = noise * schedule.prior_std(grid.times[0])
        truth = model.denoiser.exact_flow(start, grid[0], grid[n])
        errors.append(float((sampler.latents(noise, sampler.encode([""] * 4)) - truth).detach().norm()))
    assert errors[-1] < 0.02
    # y^2 is quadratic in rho on this flow, which gives the midpoint rule one order more than it has.
    order = 3 if isinstance(solver, adp.Midpoint) else solver.order
    assert slope(errors, steps) == pytest.approx(order, abs=0.2)


@torch.no_grad()
def on_a_mixture(solver, steps):
    schedule = adp.VPLinear()
    model = Mixture(schedule, standard_mixture(schedule), (2,))
    noise = torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    sampler = adp.FlowSampler(model, solver=solver, steps=steps, grid=adp.grids.log_snr)
    return sampler.latents(noise, adp.Cond())


@pytest.fixture(scope="module")
def mixture_truth():
    return on_a_mixture(adp.RK4(), 1500)


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_samples_converge_on_a_mixture(solver, mixture_truth):
    steps = steps_for(solver)
    errors = [float((on_a_mixture(solver, n) - mixture_truth).norm()) for n in steps]
    assert slope(errors, steps) == pytest.approx(solver.order, abs=0.2)


@pytest.mark.parametrize("solver", [adp.Euler(), adp.DPMSolverPP(1), adp.DPMSolverPP(2)], ids=repr)
def test_both_coordinates_make_the_same_sample_where_theory_says_so(solver):
    noise = torch.randn(3, 2, dtype=torch.float64)
    images = []
    for bounded in (False, True):
        schedule = adp.VPDiscrete(scaled_linear(), bounded=bounded)
        model = Mixture(schedule, standard_mixture(schedule), (2,))
        images.append(adp.FlowSampler(model, solver=solver, steps=9).latents(noise, adp.Cond()))
    torch.testing.assert_close(images[1], images[0], rtol=0, atol=1e-12)


CLEAN = [
    *SOLVERS,
    *(adp.Coupled(inner) for inner in (adp.Euler(), adp.Midpoint(), adp.Heun(), adp.RK4())),
    adp.EulerMaruyama(),
    adp.Ancestral(),
    adp.SDEDPMSolverPP(2),
]


@pytest.mark.parametrize("prediction", [Prediction.V, Prediction.X0], ids=lambda p: p.name)
@pytest.mark.parametrize("name", ["vp-discrete", "edm", "rectified-flow"])
@pytest.mark.parametrize("solver", CLEAN, ids=repr)
def test_no_network_is_evaluated_at_sigma_zero(solver, name, prediction):
    schedule = SCHEDULES[name]
    if isinstance(solver, adp.EulerMaruyama) and schedule.bounded:
        pytest.skip("it needs the other coordinates")
    end, times, exact, sampler = down_to_zero(schedule, solver, prediction, adp.Backprop())
    assert min(times) > schedule.limit
    assert len(times) == sampler.stats.nfe_forward == solver.calls(5, clean=True)
    assert all(bool(torch.isfinite(g).all()) for g in (end, *exact))
    adjoints = [adp.Checkpointed(), adp.CoarseAdjoint()]
    for adjoint in [*adjoints, *([adp.Reversible()] if isinstance(solver, adp.Coupled) else [])]:
        found = down_to_zero(schedule, solver, prediction, adjoint)[2]
        for g, e in zip(found, exact, strict=True):
            torch.testing.assert_close(g, e, rtol=1e-7, atol=1e-9 * float(e.abs().max()))


def test_a_backward_pass_from_sigma_zero_is_refused_before_the_sampling():
    """The paper's own form evaluates the network where its backward pass begins."""
    adjoint = adp.Continuous(solver=adp.Euler())
    with pytest.raises(adp.InputError, match="evaluated at t = -1, where sigma = 0"):
        down_to_zero(SCHEDULES["vp-discrete"], adp.Euler(), Prediction.EPS, adjoint)
    found = down_to_zero(SCHEDULES["rectified-flow"], adp.Euler(), Prediction.VELOCITY, adjoint)[2]
    assert all(bool(torch.isfinite(g).all()) for g in found)
    with pytest.raises(adp.InputError, match="alpha is 0"):
        down_to_zero(SCHEDULES["rectified-flow"], adp.Euler(), Prediction.EPS)


@torch.no_grad()
@pytest.mark.parametrize(
    ("solver", "order"), [(adp.Heun(), 2), (adp.Midpoint(), 2), (adp.RK4(), 2)], ids=repr
)
def test_the_order_of_grids_that_end_at_sigma_zero(solver, order):
    """The last step's error is of second order in its length, whatever the solver's own order."""
    schedule, errors, steps = adp.EDMSchedule(sigma_max=10.0), [], [40, 80, 160]
    mean = torch.tensor([[0.7, -0.4]], dtype=torch.float64)
    model = Mixture(schedule, GaussianMixture(schedule, mean, 0.5), (2,))
    noise = torch.ones(1, 2, dtype=torch.float64)
    for n in steps:
        times = 10.0 * (1 - torch.linspace(0, 1, n + 1, dtype=torch.float64))
        grid = TimeGrid(schedule, times)
        truth = model.denoiser.exact_flow(10.0 * noise, grid[0], grid[n])
        sampler = adp.FlowSampler(model, solver=solver, grid=times)
        errors.append(float((sampler.latents(noise, adp.Cond()) - truth).norm()))
    assert slope(errors, steps) > order - 0.3
