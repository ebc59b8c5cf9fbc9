"""One evaluation's vector-Jacobian products are autograd's."""

import pytest
import torch

import adjointdpm as adp
from adjointdpm.adjoints.vjp import VJP, Leaves
from adjointdpm.flow.grids import TimeGrid
from adjointdpm.flow.probability_flow import ProbabilityFlow
from adjointdpm.solvers.integrate import IVP
from tests.conftest import unet_sampler
from tests.tiny.gradients import inputs


def problem():
    sampler = unet_sampler(steps=3, solver=adp.Euler())
    noise, cond = inputs(sampler)
    flow = ProbabilityFlow(sampler.model.schedule, sampler.model.denoiser)
    grid = TimeGrid.checked(sampler.model.schedule, sampler.times())
    return IVP(flow, adp.Euler(), grid, flow.initial(noise, grid[0]), cond, None), noise


@pytest.mark.parametrize("rescale", [False, True])
def test_products_are_those_of_autograd(rescale):
    ivp, _ = problem()
    leaves = Leaves(ivp, "this adjoint")
    products = VJP(ivp, adp.Stats(), leaves, rescale)
    time, z = ivp.grid[1], ivp.initial.detach()
    mu = torch.randn(z.shape, dtype=z.dtype, generator=torch.Generator().manual_seed(3))
    value, *found = products(z, time, mu, leaves.tensors)
    point = z.clone().requires_grad_()
    slope = ivp.velocity(point, time)
    exact = torch.autograd.grad((slope * mu).sum(), [point, *leaves.tensors])
    assert torch.equal(value, slope.detach())
    assert len(found) == len(exact) > 50
    for g, e in zip(found, exact, strict=True):
        assert torch.allclose(g, e, rtol=1e-12, atol=1e-14 * float(e.abs().max() + 1))


def test_a_time_grid_that_requires_a_gradient_is_refused():
    ivp, _ = problem()
    ivp.grid.times.requires_grad_()
    with pytest.raises(adp.InputError, match="this adjoint has no gradient for the time grid"):
        Leaves(ivp, "this adjoint")
