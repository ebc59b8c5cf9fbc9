"""Losses of classifiers: closed forms, and a gradient where the softmax saturates."""

import math

import pytest
import torch
from torch import nn

import adjointdpm as adp
from adjointdpm import metrics as m
from tests.tiny.metrics import Logits, random_images


def test_classifier_metrics_in_closed_form():
    class Fixed(nn.Module):
        def forward(self, images):
            return torch.tensor([[3.0, 1.0, 2.5], [0.0, 4.0, 5.0]]) + 0 * images.mean()

    images = torch.zeros(2, 3, 4, 4)
    for labels in (torch.tensor([0, 1]),):
        assert m.Margin(Fixed(), labels)(images).tolist() == [0.5, -1.0]
        assert m.Logit(Fixed(), labels)(images).tolist() == [-3.0, -4.0]
        expected = [
            -3 + math.log(math.exp(3) + math.exp(1) + math.exp(2.5)),
            -4 + math.log(1 + math.exp(4) + math.exp(5)),
        ]
        assert m.LogProbability(Fixed(), labels)(images).tolist() == pytest.approx(expected, rel=1e-6)
    assert m.Margin(Fixed(), 2)(images).tolist() == [-0.5, 1.0]
    with pytest.raises(adp.InputError, match="below 3"):
        m.Margin(Fixed(), 3)(images)
    with pytest.raises(adp.InputError, match="labels for"):
        m.Margin(Fixed(), torch.tensor([0, 1, 2]))(images)


def test_a_saturated_classifier_has_a_gradient():
    """Softmax before cross-entropy, as in the paper's release, has next to none where logits are far apart."""
    images = random_images(1).requires_grad_()
    sure = lambda x: 1e4 * Logits()(x)  # noqa: E731
    wrong = int(Logits()(images).argmin())
    (ours,) = torch.autograd.grad(m.LogProbability(sure, wrong)(images).sum(), images)
    twice = nn.functional.cross_entropy(sure(images).softmax(1), torch.tensor([wrong]))
    (theirs,) = torch.autograd.grad(twice, images)
    assert float(ours.norm()) > 1
    assert float(theirs.norm()) < 1e-100
