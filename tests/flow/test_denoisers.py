"""Every parameterization of a denoiser describes the same flow."""

import pytest
import torch

import adjointdpm as adp
from adjointdpm.flow.denoisers import Prediction
from tests.conftest import Mixture, scaled_linear, standard_mixture


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
