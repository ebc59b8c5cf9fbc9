"""Gram matrices and features of networks in closed form."""

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck

import adjointdpm as adp
from adjointdpm import metrics as m
from tests.tiny.metrics import identity, random_images, tiny_clip


def test_gram_of_a_closed_form():
    """Constant features a, b, c have the Gram matrix of outer products, on any number of pixels."""
    colour = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    flat = lambda side: colour.view(1, 3, 1, 1).expand(1, 3, side, side)  # noqa: E731
    assert torch.allclose(m.gram(flat(4))[0], torch.outer(colour, colour))
    tokens = flat(4).flatten(2).transpose(1, 2)
    assert torch.allclose(m.gram(tokens), m.gram(flat(4)))
    style = m.Style(identity, flat(5)[0])
    assert float(style(flat(8))) == pytest.approx(0, abs=1e-12)
    assert float(style(0 * flat(8))) == pytest.approx(1)
    # Gram matrices grow with the square: |4 G - G|^2 / |G|^2 = 9.
    assert float(style(2 * flat(8))) == pytest.approx(9)
    x = random_images(1)
    moved = x[:, :, :, torch.randperm(8, generator=torch.Generator().manual_seed(0))]
    assert float(m.Style(identity, x[0])(moved)) == pytest.approx(0, abs=1e-12)
    assert float(m.ContentDistance(identity, x)(moved)) > 0.1
    assert float(m.ContentDistance(identity, x)(3 * x)) == pytest.approx(4)


def test_layers_of_a_network_of_ones_own():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1)).double()
    x = random_images()
    first, last = m.Layers(net, ["0", "2"])(x)
    assert torch.equal(first, net[0](x))
    assert torch.equal(last, net(x))
    assert not net[0]._forward_hooks
    with pytest.raises(adp.InputError, match="no module"):
        m.Layers(net, ["7"])


def test_hidden_states_of_a_vision_tower():
    model, process = tiny_clip().vision_model, m.Preprocess(16)
    x = random_images(side=16)
    (tokens,) = m.HiddenStates(model, process, [-1])(x)
    assert torch.equal(model.post_layernorm(tokens[:, 0]), model(process(x)).pooler_output)
    style = m.Style(m.HiddenStates(model, process, [0, 1]), x[0])
    assert float(style(x)[0]) == pytest.approx(0, abs=1e-12)
    assert gradcheck(style, x.clone().requires_grad_(), fast_mode=True)
    with pytest.raises(adp.InputError, match="hidden states"):
        m.HiddenStates(model, process, [9])(x)


@pytest.mark.parametrize("size", [1e-4, 200.0])
def test_half_precision_features_neither_underflow_nor_overflow(size):
    """The squares of both sizes lie outside of float16's range."""
    theirs = size * torch.linspace(0.5, 1, 64).view(1, 4, 4, 4)
    ours = 1.5 * theirs
    features = lambda images: [images.half()]  # noqa: E731
    found = m.ContentDistance(features, theirs)(ours)
    assert bool(torch.isfinite(found).all())
    assert float(found) == pytest.approx(0.25, rel=0.1)
