"""The sliced Wasserstein distance in closed form, and what it does not depend on."""

import pytest
import torch
from torch.autograd import gradcheck

import adjointdpm as adp
from adjointdpm import metrics as m
from adjointdpm.metrics.sliced_wasserstein import ROUNDING
from tests.tiny.metrics import identity, random_images


def test_a_shift_and_a_scale_of_gray_values_have_a_closed_form():
    """Along any direction the values a v + b have the distance mean ((a - 1) v + b)^2 from v, over the variance."""
    gray = torch.rand(1, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    image = gray.expand(1, 3, 8, 8)
    metric = m.SlicedWasserstein(image[0], features=lambda images: [images[:, :1]], directions=5)
    for a, b in ((1.0, 0.1), (0.5, 0.0), (0.7, -0.2)):
        expected = ((a - 1) * gray + b).square().mean() / gray.var(correction=0)
        assert float(metric(a * image + b)) == pytest.approx(float(expected))


def test_the_order_of_the_pixels_does_not_matter_and_their_colors_do():
    x = random_images(1)
    metric = m.SlicedWasserstein(x[0], features=identity)
    moved = x.flatten(2)[:, :, torch.randperm(64, generator=torch.Generator().manual_seed(1))].view_as(x)
    assert float(metric(moved)) == pytest.approx(0, abs=1e-12)
    # The channels' own distributions are the same here, and those of the colors are not.
    other = x.clone()
    other[:, 1] = other[:, 1].flip(2)
    assert float(metric(other)) > 1e-3


def test_it_tells_distributions_with_one_gram_matrix_apart():
    """Values 0 and 1 at equal shares, and the constant that has the same mean square."""
    halves = torch.zeros(1, 3, 4, 4, dtype=torch.float64)
    halves[..., :2] = 1
    flat = torch.full_like(halves, 0.5**0.5)
    assert float(m.Style(identity, halves[0])(flat)) == pytest.approx(0, abs=1e-12)
    assert float(m.SlicedWasserstein(halves[0], identity)(flat)) > 0.5


def test_a_mirrored_blurred_image_is_near_a_blurred_reference_and_a_sharp_one_is_not():
    x = random_images(1, side=16)
    patches, details = m.patches_and_details(x)
    assert torch.equal(patches[0, :, 2, 3], x[0, :, 2:5, 3:6].flatten())
    assert float(details.sum(1).abs().max()) > 0
    assert float(m.patches_and_details(torch.full_like(x, 0.3))[1].abs().max()) == pytest.approx(
        0, abs=1e-12
    )
    blurred = m.EFFECTS["blurred"](x)
    metric = m.SlicedWasserstein(blurred[0])
    assert float(metric(blurred)) == 0
    assert float(metric(x)) > 10 * float(metric(m.EFFECTS["blurred"](x.flip(3))))


def test_a_reference_of_another_size_has_the_same_distribution():
    line = torch.linspace(0, 1, 64, dtype=torch.float64).view(1, 1, 8, 8).expand(1, 3, 8, 8)
    longer = torch.linspace(0, 1, 256, dtype=torch.float64).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    assert float(m.SlicedWasserstein(longer[0], identity)(line)) == pytest.approx(0, abs=1e-5)
    assert float(m.SlicedWasserstein(longer[0], identity)(line + 0.1)) > 0.01


def test_a_flat_reference_is_measured_in_roundings():
    """No variance of its own: the variance of rounding to 8 bits takes its place."""
    flat = torch.full((3, 8, 8), 0.5, dtype=torch.float64)
    metric = m.SlicedWasserstein(flat, features=lambda images: [images[:, :1]], directions=3)
    assert float(metric(flat[None] + 1 / 255)) == pytest.approx((1 / 255) ** 2 / ROUNDING)


def test_its_gradient_is_that_of_finite_differences():
    metric = m.SlicedWasserstein(random_images(1, 8, 5)[0])
    assert gradcheck(metric, random_images().requires_grad_(), fast_mode=True)


def test_directions_are_those_of_the_seed():
    x, reference = random_images(), random_images(1, 8, 5)[0]
    one, two = (m.SlicedWasserstein(reference, seed=3)(x) for _ in range(2))
    assert torch.equal(one, two)
    assert not torch.equal(one, m.SlicedWasserstein(reference, seed=4)(x))


def test_references_and_images_that_cannot_be():
    with pytest.raises(adp.InputError, match="a reference is"):
        m.SlicedWasserstein(torch.zeros(1, 3, 8, 8))
    with pytest.raises(adp.InputError, match="at least one direction"):
        m.SlicedWasserstein(torch.zeros(3, 8, 8), directions=0)
    with pytest.raises(adp.InputError, match="3 x 3 pixels"):
        m.patches_and_details(torch.zeros(1, 3, 2, 8))
