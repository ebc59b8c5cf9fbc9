"""The coupled solver keeps the order of the solver inside it."""

import pytest
import torch

import adjointdpm as adp
from adjointdpm.flow.denoisers import GaussianMixture
from tests.conftest import Mixture
from tests.tiny.solvers import slope


@pytest.mark.parametrize("inner", [adp.Midpoint(), adp.Heun()], ids=repr)
def test_it_has_at_least_the_inner_solvers_order(inner):
    schedule = adp.VPLinear()
    model = Mixture(schedule, GaussianMixture(schedule, torch.tensor([[0.4, -0.2]]).double(), 0.5), (2,))
    noise = torch.randn(2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    errors, steps = [], [160, 320, 640]
    for n in steps:
        grid = adp.grids.log_snr(schedule, n, end=0.05)
        sampler = adp.FlowSampler(model, solver=adp.Coupled(inner), grid=grid)
        times = sampler._time_grid
        exact = model.denoiser.exact_flow(noise * schedule.prior_std(times[0].t), times[0], times[n])
        with torch.no_grad():
            errors.append(float((sampler.latents(noise, adp.Cond()) - exact).norm()))
    assert slope(errors, steps) > inner.order - 0.2
