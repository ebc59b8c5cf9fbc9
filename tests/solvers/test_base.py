"""What a solver says about itself is what it does."""

import pytest
import torch

import adjointdpm as adp
from tests.conftest import Mixture, scaled_linear, standard_mixture
from tests.tiny.solvers import SOLVERS


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_calls_is_the_number_of_calls(solver):
    schedule = adp.VPDiscrete(scaled_linear())
    sampler = adp.FlowSampler(Mixture(schedule, standard_mixture(schedule), (2,)), solver=solver, steps=5)
    with torch.no_grad():
        sampler.latents(torch.randn(1, 2, dtype=torch.float64), adp.Cond())
    assert sampler.stats.nfe_forward == solver.calls(5)
