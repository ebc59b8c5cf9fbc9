"""CLIP's distance is its model's own similarity."""

import pytest
import torch
from torch.autograd import gradcheck

from adjointdpm import metrics as m
from tests.tiny.metrics import random_images, tiny_clip


def test_clip_is_its_models_own_similarity():
    model, process = tiny_clip(), m.Preprocess(16, (0.4, 0.5, 0.6), (0.2, 0.3, 0.25))
    x, other = random_images(side=12), random_images(1, 16, 4)[0]
    found = model(input_ids=torch.tensor([[0, 5, 2]]), pixel_values=process(x), return_dict=True)
    cosine = found.logits_per_image[:, 0] / model.logit_scale.exp()
    to_text = m.ClipDistance(model, found.text_embeds[0], process)
    assert torch.allclose(to_text(x), 1 - cosine)
    assert gradcheck(to_text, x.clone().requires_grad_(), fast_mode=True)
    to_image = m.ClipDistance.of_image(model, other, process)
    assert float(to_image(other[None])) == pytest.approx(0, abs=1e-9)
