"""Time grids: instants between nodes, and gradients of the times."""

import pytest
import torch

import adjointdpm as adp
from adjointdpm.flow.grids import TimeGrid
from tests.conftest import Mixture, scaled_linear, standard_mixture
from tests.tiny.solvers import SCHEDULES


def test_intermediate_stages_are_at_true_times():
    schedule = adp.VPDiscrete(scaled_linear())
    grid = TimeGrid(schedule, adp.grids.uniform(schedule, 4))
    between = grid.between(1, 0.5)
    assert float(between.tau) == pytest.approx(float(grid[1].tau + grid[2].tau) / 2, rel=1e-12)
    assert float(between.t) != round(float(between.t))


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
