"""The transposed form: exact where it is the sampler's own transpose, convergent where it is coarser."""

import pytest
import torch

import adjointdpm as adp
from adjointdpm.flow.denoisers import Prediction
from adjointdpm.flow.grids import TimeGrid, even_nodes
from tests.conftest import unet_sampler
from tests.tiny.gradients import inputs, loss_of
from tests.tiny.mixtures import SCHEDULES, gradient, mixture
from tests.tiny.solvers import slope

COARSE = [adp.AdamsBashforth(2), adp.DPMSolverPP(2), adp.Midpoint()]


def unet_gradient(adjoint, solver, prediction=Prediction.EPS, steps=6):
    sampler = unet_sampler(prediction, solver=solver, steps=steps, adjoint=adjoint)
    noise, cond = inputs(sampler)
    leaves = [noise, *cond.values(), *sampler.parameters()]
    return torch.autograd.grad(loss_of(sampler, noise, cond), leaves), sampler


@pytest.mark.parametrize(
    ("solver", "prediction"),
    [
        (adp.Euler(), Prediction.VELOCITY),
        (adp.Heun(), Prediction.EPS),
        (adp.AdamsBashforth(3), Prediction.EPS),
        (adp.DPMSolverPP(2), Prediction.V),
    ],
    ids=repr,
)
def test_all_nodes_and_the_samplers_solver_are_the_exact_gradient(solver, prediction):
    """Noise, prompt, negative prompt, guidance scale and every weight, at six coarse steps."""
    exact, _ = unet_gradient(adp.Backprop(), solver, prediction)
    found, sampler = unet_gradient(adp.CoarseAdjoint(), solver, prediction)
    for g, e in zip(found, exact, strict=True):
        assert float((g - e).abs().max()) <= 1e-12 * float(e.abs().max()) + 1e-18
    assert sampler.stats.nfe_forward == 2 * sampler.stats.nfe_backward == 2 * solver.calls(6)


def test_the_same_solver_given_by_name_is_exact_and_rescaling_changes_nothing():
    exact, _ = unet_gradient(adp.Backprop(), adp.DPMSolverPP(2))
    for adjoint in (
        adp.CoarseAdjoint(steps=6, solver=adp.DPMSolverPP(2), rescale=True),
        adp.CoarseAdjoint(tolerance=1e-12),
    ):
        found, sampler = unet_gradient(adjoint, adp.DPMSolverPP(2))
        assert sampler.stats.backward_steps == 6
        for g, e in zip(found, exact, strict=True):
            assert float((g - e).abs().max()) <= 1e-12 * float(e.abs().max()) + 1e-18


@pytest.mark.parametrize("solver", COARSE, ids=repr)
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
def test_a_coarser_transpose_converges_at_its_order(solver, schedule):
    """Half the nodes of a much more accurate sampling: the error left is the backward solver's."""
    exact = gradient(mixture(schedule, solver=adp.RK4(), steps=400))
    errors, steps = [], [60, 120]
    for n in steps:
        sampler = mixture(schedule, solver=adp.RK4(), steps=2 * n)
        found = gradient(sampler.replace(adjoint=adp.CoarseAdjoint(steps=n, solver=solver)))
        errors.append([float((g - e).norm() / e.norm()) for g, e in zip(found, exact, strict=True)])
    for each in zip(*errors, strict=True):
        assert slope(list(each), steps) > solver.order - 0.25


def test_a_written_out_two_step_transpose():
    """The recurrence of the module's head, with explicit matrices, for two-step Adams-Bashforth."""
    schedule = adp.VPLinear()
    sampler = mixture(schedule, solver=adp.DPMSolverPP(2), steps=8)
    noise = torch.randn(1, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    cond, weight = sampler.encode(""), torch.tensor([[1.0, -0.5]], dtype=torch.float64)
    grid = TimeGrid(schedule, sampler.grid(schedule, 8))
    states = [noise * (schedule.prior_std(grid[0].t) / grid[0].scale)]
    eps = lambda z, i: sampler.model.denoiser(z * grid[i].scale, grid[i].t, cond)  # noqa: E731
    for i in range(8):
        short = sampler.replace(grid=grid.times[: i + 2])
        states.append((short.latents(noise, cond) / grid[i + 1].scale).detach())
    nodes = [*even_nodes(grid, 4), 8]
    taus = [float(grid[i].tau) for i in nodes]
    a = {4: (weight * grid[8].scale).T}
    w = {(0, 0): taus[1] - taus[0]}
    for k in range(1, 4):
        h, last = taus[k + 1] - taus[k], taus[k] - taus[k - 1]
        w |= {(k, 0): h * (1 + h / last / 2), (k, 1): -h * h / last / 2}
    for k in (3, 2, 1, 0):
        jacobian = torch.autograd.functional.jacobian(
            lambda z, k=k: eps(z[None], nodes[k])[0], states[nodes[k]][0]
        )
        mu = sum(w[k + j, j] * a[k + j + 1] for j in (0, 1) if (k + j, j) in w)
        a[k] = a[k + 1] + jacobian.T @ mu
    own = sampler.replace(adjoint=adp.CoarseAdjoint(steps=4, solver=adp.AdamsBashforth(2)))
    x = noise.clone().requires_grad_()
    (found,) = torch.autograd.grad((own.latents(x, cond) * weight).sum(), x)
    written = a[0].T * (schedule.prior_std(grid[0].t) / grid[0].scale)
    torch.testing.assert_close(found, written, rtol=1e-10, atol=0)


@pytest.mark.parametrize("end", [0.0, -1.0])
def test_nodes_are_distinct_forward_nodes(end):
    schedule = adp.VPDiscrete(torch.linspace(0.9999, 0.005, 1000, dtype=torch.float64))
    grid = TimeGrid(schedule, adp.grids.uniform(schedule, 50, end=end))
    for steps in range(1, 51):
        nodes = even_nodes(grid, steps)
        assert nodes[0] == 0
        assert nodes[-1] < 50
        assert len(nodes) == len(set(nodes)) == steps
        assert nodes == sorted(nodes)
    assert even_nodes(grid, 50) == list(range(50))


def test_the_tolerance_chooses_and_reports():
    chosen = []
    for tolerance in (1.0, 0.03, 1e-4):
        adjoint = adp.CoarseAdjoint(tolerance=tolerance)
        sampler = mixture(adp.VPLinear(), solver=adp.DPMSolverPP(2), steps=60, adjoint=adjoint)
        gradient(sampler)
        stats = sampler.stats
        assert stats.error_estimate <= tolerance
        assert stats.nfe_backward == stats.backward_steps
        chosen.append(stats.backward_steps)
    assert chosen == sorted(chosen)
    assert len(set(chosen)) == 3
