"""The velocity is the derivative of the exact flow, in both coordinates."""

import pytest
import torch

import adjointdpm as adp
from adjointdpm.flow.denoisers import GaussianMixture
from adjointdpm.flow.grids import TimeGrid
from adjointdpm.flow.probability_flow import ProbabilityFlow
from tests.conftest import scaled_linear


@pytest.mark.parametrize("bounded", [False, True])
def test_the_velocity_is_the_derivative_of_the_exact_flow(bounded):
    schedule = adp.VPDiscrete(scaled_linear(), bounded=bounded)
    denoiser = GaussianMixture(schedule, torch.tensor([[0.7, -0.4]], dtype=torch.float64), 0.5)
    flow = ProbabilityFlow(schedule, denoiser)
    grid = TimeGrid(schedule, torch.tensor([500.01, 500.0, 499.99], dtype=torch.float64))
    x = torch.tensor([[0.3, 1.2]], dtype=torch.float64)
    before, after = (denoiser.exact_flow(x, grid[1], grid[i]) / grid[i].scale for i in (0, 2))
    change = (after - before) / (grid[2].tau - grid[0].tau)
    velocity = flow.velocity(x / grid[1].scale, grid[1], adp.Cond())
    torch.testing.assert_close(velocity, change, rtol=1e-6, atol=0)
