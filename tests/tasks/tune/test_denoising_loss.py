"""The denoising loss is the textbook's."""

import pytest
import torch

from adjointdpm.flow.denoisers import Denoiser, Prediction
from adjointdpm.tasks.tune.denoising_loss import Denoise
from tests.tiny.tunes import sampler


def test_the_denoising_loss_is_the_textbooks():
    """Zero for a network that knows the answer, and the mean square of the error otherwise."""
    ours = sampler()
    model = ours.model
    image = torch.rand(ours.image_shape)
    task = Denoise(ours, image, "a cat", {}, items=3, seed=1)
    seen = []

    class Known(Denoiser):
        prediction = Prediction.EPS

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(()))

        def forward(self, x, t, cond):
            (time,) = model.schedule.at(t.reshape(1))
            assert "negative_prompt_embeds" not in cond
            seen.append(float(t))
            return (x - time.alpha * task.x0) / time.sigma + 0.5

    model.denoiser = Known()
    values = task.losses(0, [0, 1, 2]).values
    assert values.tolist() == pytest.approx([0.25] * 3, rel=1e-2)
    assert len(set(seen)) == 3
    Known.prediction = Prediction.X0
    assert float(task.losses(0, [0]).values) > 0.3
