"""Metrics: closed forms, finite differences in float64, and what once killed a gradient."""

import math

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck

import adjointdpm as adp
from adjointdpm import metrics as m
from adjointdpm.metrics.effects import MOONLIGHT, SEPIA, SKY


def pictures(count=2, side=8, seed=0, dtype=torch.float64):
    return torch.rand(count, 3, side, side, dtype=dtype, generator=torch.Generator().manual_seed(seed))


class Logits(nn.Module):
    """Logits that are linear in the mean colour."""

    def forward(self, images):
        weights = torch.tensor([[3.0, -1, 0], [0, 2, 1], [1, 0, -2], [1, 1, 1]], dtype=images.dtype)
        return images.mean((2, 3)) @ weights.T


def identity(images):
    return [images]


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
    images = pictures(1).requires_grad_()
    sure = lambda x: 1e4 * Logits()(x)  # noqa: E731
    wrong = int(Logits()(images).argmin())
    (ours,) = torch.autograd.grad(m.LogProbability(sure, wrong)(images).sum(), images)
    twice = nn.functional.cross_entropy(sure(images).softmax(1), torch.tensor([wrong]))
    (theirs,) = torch.autograd.grad(twice, images)
    assert float(ours.norm()) > 1
    assert float(theirs.norm()) < 1e-100


@pytest.mark.parametrize(
    "metric",
    [
        m.Margin(Logits(), torch.tensor([0, 1])),
        m.Logit(Logits(), 1),
        m.LogProbability(Logits(), 2),
        m.BackgroundColour((0.2, 0.4, 0.9), 2),
        m.Style(identity, pictures(1, 6, 5)[0]),
        m.ContentDistance(identity, pictures(2, 8, 6)),
        0.3 * m.Chroma() + 2 * m.PixelDistance(pictures(2, 8, 7)),
        *(m.beside(m.EffectDistance(e), pictures(2, 8, 8)) for e in m.EFFECTS.values()),
    ],
    ids=lambda metric: type(metric).__name__,
)
def test_gradients_are_finite_differences(metric):
    assert gradcheck(metric, pictures().requires_grad_(), fast_mode=True)


@pytest.mark.parametrize("name", m.EFFECTS)
def test_effects_have_a_gradient_also_beyond_white_and_black(name):
    images = (3 * pictures() - 1).requires_grad_()
    assert gradcheck(m.effect(name), images, fast_mode=True)
    (gradient,) = torch.autograd.grad(m.effect(name)(images).pow(2).sum(), images)
    assert float((gradient != 0).double().mean()) > 0.99


def test_effects_keep_pictures_pictures():
    for name in m.EFFECTS:
        out = m.effect(name)(pictures(4))
        assert out.shape == (4, 3, 8, 8)
        assert float(out.min()) >= -1e-9, name
        assert float(out.max()) <= 1 + (0.3 if name == "sepia" else 1e-9), name


def test_effects_of_colour_are_their_linear_maps():
    x = pictures()
    mixed = 0.2 * torch.eye(3).double() + 0.8 * torch.tensor(SEPIA, dtype=torch.float64)
    assert torch.allclose(m.effect("sepia")(x), torch.einsum("ij,bjhw->bihw", mixed, x), atol=1e-12)
    tint, sky = (torch.tensor(c, dtype=torch.float64).view(3, 1, 1) for c in (MOONLIGHT, SKY))
    assert torch.equal(m.effect("night")(x), x * tint + sky)
    assert torch.equal(m.effect("inverted")(x), 1 - x)
    flat = torch.full((1, 3, 8, 8), 0.4, dtype=torch.float64)
    for name in ("blurred", "pixel art", "line drawing"):  # 0.4 is a level of pixel art
        assert float((m.effect(name)(flat) - flat).abs().max()) < 1e-9


def test_pixel_art_is_of_squares_near_the_levels():
    out = m.effect("pixel art")(pictures(1))[0]
    assert torch.equal(out[:, ::4, ::4].repeat_interleave(4, 1).repeat_interleave(4, 2), out)
    hard = torch.nn.functional.avg_pool2d(pictures(1), 4)[0]
    off = (5 * hard - (5 * hard).round()).abs()
    assert bool(((5 * out[:, ::4, ::4] - (5 * hard).round()).abs() <= off + 1e-12).all())


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
    x = pictures(1)
    moved = x[:, :, :, torch.randperm(8, generator=torch.Generator().manual_seed(0))]
    assert float(m.Style(identity, x[0])(moved)) == pytest.approx(0, abs=1e-12)
    assert float(m.ContentDistance(identity, x)(moved)) > 0.1
    assert float(m.ContentDistance(identity, x)(3 * x)) == pytest.approx(4)


def test_sums_are_sums():
    x, target = pictures(), pictures(seed=3)
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


def test_background_is_the_border_alone():
    images = torch.zeros(1, 3, 8, 8)
    images[:, 2], images[:, :, 2:6, 2:6] = 1.0, 0.3
    assert float(m.BackgroundColour((0, 0, 1), 2)(images)) == 0.0
    assert float(m.BackgroundColour((1, 0, 1), 2)(images)) == pytest.approx(1 / 3)
    with pytest.raises(adp.InputError, match="three numbers"):
        m.BackgroundColour((0, 0, 2))


def test_layers_of_a_network_of_ones_own():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1)).double()
    x = pictures()
    first, last = m.Layers(net, ["0", "2"])(x)
    assert torch.equal(first, net[0](x))
    assert torch.equal(last, net(x))
    assert not net[0]._forward_hooks
    with pytest.raises(adp.InputError, match="no module"):
        m.Layers(net, ["7"])


def tiny_clip():
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    text = {"vocab_size": 20, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 2, "max_position_embeddings": 6, "bos_token_id": 0, "eos_token_id": 2}
    vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision |= {"image_size": 16, "patch_size": 8}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=5))
    return model.double().eval().requires_grad_(False)


def test_clip_is_its_models_own_similarity():
    model, process = tiny_clip(), m.Preprocess(16, (0.4, 0.5, 0.6), (0.2, 0.3, 0.25))
    x, other = pictures(side=12), pictures(1, 16, 4)[0]
    found = model(input_ids=torch.tensor([[0, 5, 2]]), pixel_values=process(x), return_dict=True)
    cosine = found.logits_per_image[:, 0] / model.logit_scale.exp()
    to_text = m.ClipDistance(model, found.text_embeds[0], process)
    assert torch.allclose(to_text(x), 1 - cosine)
    assert gradcheck(to_text, x.clone().requires_grad_(), fast_mode=True)
    to_picture = m.ClipDistance.of_picture(model, other, process)
    assert float(to_picture(other[None])) == pytest.approx(0, abs=1e-9)


def test_hidden_states_of_a_vision_tower():
    model, process = tiny_clip().vision_model, m.Preprocess(16)
    x = pictures(side=16)
    (tokens,) = m.HiddenStates(model, process, [-1])(x)
    assert torch.equal(model.post_layernorm(tokens[:, 0]), model(process(x)).pooler_output)
    style = m.Style(m.HiddenStates(model, process, [0, 1]), x[0])
    assert float(style(x)[0]) == pytest.approx(0, abs=1e-12)
    assert gradcheck(style, x.clone().requires_grad_(), fast_mode=True)
    with pytest.raises(adp.InputError, match="hidden states"):
        m.HiddenStates(model, process, [9])(x)


def test_preprocessing_keeps_every_pixels_gradient():
    """No clamp, no random crop: two calls see the same picture, and each pixel counts in both."""
    images = (3 * pictures(side=16) - 1).requires_grad_()
    process = m.Preprocess(8, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert torch.equal(process(images), process(images))
    # Resizing with antialiasing keeps the mean, so the gradient of it is even.
    (gradient,) = torch.autograd.grad(process(images).mean(), images)
    assert float(gradient.min()) > 0
    assert gradcheck(process, images, fast_mode=True)


def test_kornias_effects():
    kornia = pytest.importorskip("kornia")
    x = pictures()
    assert torch.equal(m.effect("kornia:filters.sobel")(x), kornia.filters.sobel(x))


def test_unknown_names():
    with pytest.raises(adp.InputError, match="no effect 'glow'"):
        m.effect("glow")
    with pytest.raises(adp.InputError, match="no function 'nothing'"):
        m.user_function("math:nothing")
    with pytest.raises(adp.InputError, match="cannot import"):
        m.user_function("no_such_module_of_yours:f")
    assert m.user_function("math:sqrt") is math.sqrt
