"""The gradient of an inversion, against finite differences and against the inverse of the Jacobian."""

import pytest
import torch

import adjointdpm as adp
from adjointdpm.adjoints.inversion import cotangent_of, inverse, solution
from adjointdpm.flow.grids import TimeGrid
from adjointdpm.flow.probability_flow import ProbabilityFlow
from adjointdpm.solvers.integrate import IVP, integrate
from adjointdpm.solvers.inversion import InversionError
from tests.conftest import standard_mixture

SCHEDULE = adp.VPLinear()


def problem(clean, shift, solver):
    flow = ProbabilityFlow(SCHEDULE, standard_mixture(SCHEDULE))
    grid = TimeGrid(SCHEDULE, adp.grids.log_snr(SCHEDULE, 6, end=0.05))
    return IVP(flow, solver, grid, clean, adp.Cond({"shift": shift}))


def clean_and_shift():
    generator = torch.Generator().manual_seed(1)
    clean = torch.randn(3, 2, dtype=torch.float64, generator=generator)
    shift = 0.1 * torch.randn(3, 2, dtype=torch.float64, generator=generator)
    return clean, shift


def test_gradients_of_state_and_conditioning_are_those_of_finite_differences():
    clean, shift = (each.requires_grad_() for each in clean_and_shift())
    found = lambda c, s: inverse(problem(c, s, adp.Heun()), adp.Stats(), 1e-10)  # noqa: E731
    assert torch.autograd.gradcheck(found, (clean, shift), eps=1e-5, atol=1e-4, rtol=1e-4)


def test_the_gradient_of_weights_is_that_of_a_finite_difference():
    clean, shift = clean_and_shift()
    ivp = problem(clean, shift, adp.Euler())
    means = ivp.flow.denoiser.means
    (gradient,) = torch.autograd.grad(inverse(ivp, adp.Stats(), 1e-10).sum(), means)
    with torch.no_grad():
        values = []
        for sign in (1, -1):
            means[1, 0] += sign * 1e-5
            values.append(float(inverse(ivp, adp.Stats(), 1e-10).sum()))
            means[1, 0] -= sign * 1e-5
    torch.testing.assert_close(float(gradient[1, 0]), (values[0] - values[1]) / 2e-5, rtol=1e-4, atol=1e-6)


def test_the_gradient_is_the_inverse_of_the_samplings_jacobian():
    clean, shift = clean_and_shift()
    ivp = problem(clean[:1].requires_grad_(), shift[:1], adp.Heun())
    start = inverse(ivp, adp.Stats(), 1e-10)
    backwards = torch.stack(
        [torch.autograd.grad(x, ivp.initial, retain_graph=True)[0][0] for x in start[0]]
    )
    f = lambda state, time: (ivp.velocity(state[0], time),)  # noqa: E731
    forwards = torch.autograd.functional.jacobian(
        lambda z: integrate(f, (z,), ivp.grid, ivp.solver)[0], start.detach()
    )
    torch.testing.assert_close(
        backwards @ forwards[0, :, 0], torch.eye(2, dtype=torch.float64), rtol=0, atol=1e-5
    )


def test_calls_are_counted():
    stats = adp.Stats()
    clean, shift = clean_and_shift()
    solution(problem(clean, shift, adp.Euler()), stats, 1e-6)
    assert stats.nfe_forward >= 6


def test_a_gradient_that_gmres_does_not_find_is_an_error():
    g = torch.tensor([[1.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    onto_first = torch.tensor([[1.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    assert torch.equal(cotangent_of(lambda v: v @ onto_first, g[:1], "Take Heun()"), g[:1])
    with pytest.raises(
        InversionError, match=r"GMRES leaves 7\.1e-01 of the cotangent.*Take Heun\(\); or invert"
    ):
        cotangent_of(lambda v: v @ onto_first, g, "Take Heun()")
