"""Metrics and their sums: finite differences in float64."""

import pytest
import torch
from torch.autograd import gradcheck

import adjointdpm as adp
from adjointdpm import metrics as m
from tests.tiny.metrics import Logits, identity, random_images


@pytest.mark.parametrize(
    "metric",
    [
        m.Margin(Logits(), torch.tensor([0, 1])),
        m.Logit(Logits(), 1),
        m.LogProbability(Logits(), 2),
        m.BackgroundColour((0.2, 0.4, 0.9), 2),
        m.Style(identity, random_images(1, 6, 5)[0]),
        m.ContentDistance(identity, random_images(2, 8, 6)),
        0.3 * m.Chroma() + 2 * m.PixelDistance(random_images(2, 8, 7)),
        *(m.beside(m.EffectDistance(e), random_images(2, 8, 8)) for e in m.EFFECTS.values()),
    ],
    ids=lambda metric: type(metric).__name__,
)
def test_gradients_are_finite_differences(metric):
    assert gradcheck(metric, random_images().requires_grad_(), fast_mode=True)


def test_sums_are_sums():
    x, target = random_images(), random_images(seed=3)
    a, b = m.Chroma(), m.PixelDistance(target)
    by_hand = 0.5 * a(x) - 2 * b(x)
    assert torch.allclose((0.5 * a - 2 * b)(x), by_hand)
    assert torch.allclose((-(2 * b - 0.5 * a))(x), by_hand)
    paired = 3 * m.Pixels() + a + (lambda images: images.mean((1, 2, 3)))
    assert torch.allclose(m.beside(paired, target)(x), 3 * b(x) + a(x) + x.mean((1, 2, 3)))
    with pytest.raises(adp.InputError, match="beside"):
        paired(x)
    with pytest.raises(adp.InputError, match="no callable"):
        a + 3
