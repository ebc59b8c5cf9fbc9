"""Effects on images: their linear maps, their range and their gradients."""

import pytest
import torch
from torch.autograd import gradcheck

from adjointdpm import metrics as m
from adjointdpm.metrics.effects import MOONLIGHT, SEPIA, SKY
from tests.tiny.metrics import random_images


@pytest.mark.parametrize("name", m.EFFECTS)
def test_effects_have_a_gradient_also_beyond_white_and_black(name):
    images = (3 * random_images() - 1).requires_grad_()
    assert gradcheck(m.effect(name), images, fast_mode=True)
    (gradient,) = torch.autograd.grad(m.effect(name)(images).pow(2).sum(), images)
    assert float((gradient != 0).double().mean()) > 0.99


def test_an_effect_of_an_image_is_an_image():
    for name in m.EFFECTS:
        out = m.effect(name)(random_images(4))
        assert out.shape == (4, 3, 8, 8)
        assert float(out.min()) >= -1e-9, name
        assert float(out.max()) <= 1 + (0.3 if name == "sepia" else 1e-9), name


def test_effects_of_colour_are_their_linear_maps():
    x = random_images()
    mixed = 0.2 * torch.eye(3).double() + 0.8 * torch.tensor(SEPIA, dtype=torch.float64)
    assert torch.allclose(m.effect("sepia")(x), torch.einsum("ij,bjhw->bihw", mixed, x), atol=1e-12)
    tint, sky = (torch.tensor(c, dtype=torch.float64).view(3, 1, 1) for c in (MOONLIGHT, SKY))
    assert torch.equal(m.effect("night")(x), x * tint + sky)
    assert torch.equal(m.effect("inverted")(x), 1 - x)
    flat = torch.full((1, 3, 8, 8), 0.4, dtype=torch.float64)
    for name in ("blurred", "pixel art", "line drawing"):  # 0.4 is a level of pixel art
        assert float((m.effect(name)(flat) - flat).abs().max()) < 1e-9


def test_pixel_art_is_of_squares_near_the_levels():
    out = m.effect("pixel art")(random_images(1))[0]
    assert torch.equal(out[:, ::4, ::4].repeat_interleave(4, 1).repeat_interleave(4, 2), out)
    hard = torch.nn.functional.avg_pool2d(random_images(1), 4)[0]
    off = (5 * hard - (5 * hard).round()).abs()
    assert bool(((5 * out[:, ::4, ::4] - (5 * hard).round()).abs() <= off + 1e-12).all())


def test_kornias_effects():
    kornia = pytest.importorskip("kornia")
    x = random_images()
    assert torch.equal(m.effect("kornia:filters.sobel")(x), kornia.filters.sobel(x))
