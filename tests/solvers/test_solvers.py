"""Samples against the exact flow: order of convergence, true coefficients, known identities."""

import itertools

import pytest
import torch

import adjointdpm as adp
from adjointdpm.flow.denoisers import GaussianMixture, Prediction
from adjointdpm.flow.grids import TimeGrid
from tests.conftest import Mixture, scaled_linear, standard_mixture

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


def steps_for(solver):
    """Where each solver has settled into its order and is not yet at rounding."""
    return [160, 320, 640] if isinstance(solver, adp.AdamsBashforth) else [80, 160, 320]


def slope(errors, steps):
    """Of log error against log step, through the last points."""
    n, e = torch.tensor(steps).double().log(), torch.tensor(errors).log()
    return -float(((n - n.mean()) * (e - e.mean())).sum() / ((n - n.mean()) ** 2).sum())


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


@torch.no_grad()
@pytest.mark.parametrize("prediction", list(Prediction), ids=lambda p: p.name)
def test_every_prediction_describes_the_same_flow(prediction):
    schedule = adp.VPDiscrete(scaled_linear())
    noise = torch.randn(3, 2, dtype=torch.float64)
    images = [
        adp.FlowSampler(Mixture(schedule, standard_mixture(schedule, kind), (2,)), steps=12).latents(
            noise, adp.Cond()
        )
        for kind in (Prediction.EPS, prediction)
    ]
    torch.testing.assert_close(images[1], images[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("solver", [adp.Euler(), adp.DPMSolverPP(1), adp.DPMSolverPP(2)], ids=repr)
def test_both_coordinates_make_the_same_sample_where_theory_says_so(solver):
    noise = torch.randn(3, 2, dtype=torch.float64)
    images = []
    for bounded in (False, True):
        schedule = adp.VPDiscrete(scaled_linear(), bounded=bounded)
        model = Mixture(schedule, standard_mixture(schedule), (2,))
        images.append(adp.FlowSampler(model, solver=solver, steps=9).latents(noise, adp.Cond()))
    torch.testing.assert_close(images[1], images[0], rtol=0, atol=1e-12)


def test_euler_adams_1_and_dpm_1_are_ddim():
    schedule = adp.VPDiscrete(scaled_linear())
    model = Mixture(schedule, standard_mixture(schedule), (2,))
    noise = torch.randn(3, 2, dtype=torch.float64)
    x, times = noise, adp.grids.uniform(schedule, 7)
    for t, after in itertools.pairwise(times):
        bar, bar_after = schedule.log_alpha_bar(t).exp(), schedule.log_alpha_bar(after).exp()
        eps = model.denoiser(x, t, adp.Cond())
        x0 = (x - (1 - bar).sqrt() * eps) / bar.sqrt()
        x = bar_after.sqrt() * x0 + (1 - bar_after).sqrt() * eps  # equation 12 of arXiv 2010.02502
    for solver in (adp.Euler(), adp.AdamsBashforth(1), adp.DPMSolverPP(1)):
        image = adp.FlowSampler(model, solver=solver, steps=7).latents(noise, adp.Cond())
        torch.testing.assert_close(image, x, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("order", "textbook"),
    [
        (1, [1]),
        (2, [3 / 2, -1 / 2]),
        (3, [23 / 12, -16 / 12, 5 / 12]),
        (4, [55 / 24, -59 / 24, 37 / 24, -9 / 24]),
    ],
)
def test_adams_bashforth_has_the_textbook_coefficients_on_an_even_grid(order, textbook):
    taus = [torch.tensor(3.0 - 0.1 * -j, dtype=torch.float64) for j in range(order)]
    weights = adp.AdamsBashforth._weights(taus, torch.tensor(2.9, dtype=torch.float64))
    torch.testing.assert_close(weights, -0.1 * torch.tensor(textbook, dtype=torch.float64))


def test_adams_bashforth_integrates_polynomials_exactly_on_an_uneven_grid():
    taus = torch.tensor([1.0, 1.3, 1.9, 2.0], dtype=torch.float64)
    weights = adp.AdamsBashforth._weights(list(taus), torch.tensor(0.4, dtype=torch.float64))
    for m in range(4):
        assert float(weights @ taus**m) == pytest.approx((0.4 ** (m + 1) - 1) / (m + 1), rel=1e-12)


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_calls_is_the_number_of_calls(solver):
    schedule = adp.VPDiscrete(scaled_linear())
    sampler = adp.FlowSampler(Mixture(schedule, standard_mixture(schedule), (2,)), solver=solver, steps=5)
    with torch.no_grad():
        sampler.latents(torch.randn(1, 2, dtype=torch.float64), adp.Cond())
    assert sampler.stats.nfe_forward == solver.calls(5)


def test_intermediate_stages_are_at_true_times():
    schedule = adp.VPDiscrete(scaled_linear())
    grid = TimeGrid(schedule, adp.grids.uniform(schedule, 4))
    between = grid.between(1, 0.5)
    assert float(between.tau) == pytest.approx(float(grid[1].tau + grid[2].tau) / 2, rel=1e-12)
    assert float(between.t) != round(float(between.t))


@pytest.mark.parametrize("solver", [adp.AdamsBashforth, adp.DPMSolverPP])
@pytest.mark.parametrize("order", [0, 5])
def test_unknown_orders_are_refused(solver, order):
    with pytest.raises(adp.InputError, match="order"):
        solver(order)


class Watched(GaussianMixture):
    """Remembers at which times it is evaluated."""

    def forward(self, x, t, cond, run=adp._types.direct):
        self.times.append(float(t))
        return super().forward(x, t, cond, run)


CLEAN = [
    *SOLVERS,
    *(adp.Coupled(inner) for inner in (adp.Euler(), adp.Midpoint(), adp.Heun(), adp.RK4())),
    adp.EulerMaruyama(),
    adp.Ancestral(),
    adp.SDEDPMSolverPP(2),
]


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


def test_heun_is_algorithm_1_of_edm():
    """Karras et al., 2022, with S_churn = 0, down to sigma = 0; and the data prediction is where it ends."""
    end, _, _, sampler = down_to_zero(adp.EDMSchedule(sigma_max=10.0), adp.Heun(), Prediction.X0)
    denoise = lambda x, sigma: sampler.model.denoiser(x, sigma, adp.Cond())  # noqa: E731
    times = sampler.times()
    x = torch.ones(1, 2, dtype=torch.float64) * times[0]
    for sigma, after in itertools.pairwise(times):
        d = (x - denoise(x, sigma)) / sigma
        ahead = x + (after - sigma) * d
        if after != 0:
            ahead = x + (after - sigma) * (d / 2 + (ahead - denoise(ahead, after)) / (2 * after))
        x = ahead
    torch.testing.assert_close(end, x, rtol=1e-12, atol=1e-12)


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


def test_a_grids_infinite_gradient_is_an_error_that_names_its_time():
    """sigma rises like a square root from t = -1; the other times keep their gradients if that one is fixed."""
    schedule = SCHEDULES["vp-discrete"]
    model = Mixture(schedule, standard_mixture(schedule), (2,))
    noise = torch.ones(1, 2, dtype=torch.float64)
    times = torch.tensor([999.0, 500.0, -1.0], dtype=torch.float64, requires_grad=True)
    with pytest.raises(adp.NonFiniteError, match=r"time number 2 is -?inf"):
        adp.FlowSampler(model, solver=adp.Euler(), grid=times).latents(noise, adp.Cond()).sum().backward()

    def end(free):
        grid = torch.cat([free, torch.tensor([-1.0], dtype=torch.float64)])
        return adp.FlowSampler(model, solver=adp.Euler(), grid=grid).latents(noise, adp.Cond()).sum()

    free = torch.tensor([900.5, 500.5], dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(end(free), free)
    with torch.no_grad():
        for i in range(2):
            h = torch.zeros(2, dtype=torch.float64)
            h[i] = 1e-3
            assert float(end(free + h) - end(free - h)) / 2e-3 == pytest.approx(float(found[i]), rel=1e-5)
