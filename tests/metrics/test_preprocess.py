"""Resampling and cropping in tensors: Pillow's own pixels, and true gradients."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.autograd import gradcheck

import adjointdpm as adp
from adjointdpm import metrics as m
from adjointdpm.metrics.preprocess import CenterCrop, Pad, Preprocess, Resize, Steps
from adjointdpm.zoo import load_classifier
from tests.tiny.metrics import random_images

SHAPES = [
    ((64, 64), (32, 48)), ((37, 61), (90, 101)), ((64, 64), (64, 20)), ((50, 33), (7, 130)), ((5, 9), (9, 5)),
    ((300, 200), (64, 64)), ((64, 100), (48, 48)),
]  # fmt: skip


@pytest.mark.parametrize("resample", range(6))
@pytest.mark.parametrize("kind", ["noise", "edges"])
def test_resampling_is_pillows(resample, kind):
    rng = np.random.default_rng(0)
    for (h, w), (height, width) in SHAPES:
        levels = rng.integers(0, 256, (h, w, 3)) if kind == "noise" else 255 * rng.integers(0, 2, (h, w, 3))
        wanted = np.asarray(Image.fromarray(levels.astype("uint8")).resize((width, height), resample))
        images = torch.tensor(levels).permute(2, 0, 1)[None].double() / 255
        found = 255 * Resize(lambda *_, size=(height, width): size, resample)(images)
        # Pillow rounds to 8 bits after each of its two passes, and takes the nearest pixel as it is.
        away = float((found[0].permute(1, 2, 0) - torch.tensor(wanted)).abs().max())
        assert away <= (0 if resample == 0 else 1.3)


@pytest.mark.parametrize("resample", range(6))
def test_resampling_has_its_gradient_out_of_range_too(resample):
    torch.manual_seed(0)
    images = (2 * torch.rand(1, 3, 7, 6, dtype=torch.float64) - 0.5).requires_grad_()
    assert gradcheck(Resize(lambda h, w: (5, 9), resample), images, fast_mode=True)
    if resample != 0:
        mean = Resize(lambda h, w: (5, 4), resample)(images)
        (gradient,) = torch.autograd.grad(mean[0, 0].sum(), images)
        assert int((gradient[0, 0] != 0).sum()) == 42  # a filter that shrinks sees every pixel


def test_only_what_a_filter_adds_is_cut():
    edge = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    edge[..., 4:] = 1.0
    larger = Resize(lambda h, w: (32, 32), 3)
    assert (float(larger(edge).min()), float(larger(edge).max())) == (0.0, 1.0)  # as 8 bits do
    wide = 3 * edge - 1
    assert (float(larger(wide).min()), float(larger(wide).max())) == (-1.0, 2.0)  # its own range is kept
    assert float(larger(0.5 * edge + 0.25).max()) > 0.76  # overshoots within [0, 1] stay


def test_crops_and_pads():
    images = torch.arange(35.0).view(1, 1, 5, 7)
    cropped = CenterCrop(lambda h, w: (2, 4))(images)
    assert torch.equal(cropped, images[..., 1:3, 1:5])
    around = CenterCrop(lambda h, w: (8, 6))(images)
    assert torch.equal(around[..., 2:7, :], images[..., 0:6])
    assert float(around[..., :2, :].abs().sum() + around[..., 7:, :].abs().sum()) == 0
    padded = Pad(6, 9)(images)
    assert torch.equal(padded[..., :5, :7], images)
    assert float(padded.sum()) == float(images.sum())
    with pytest.raises(adp.InputError, match="padded to 4 x 9, but are"):
        Pad(4, 9)(images)


def test_steps_are_taken_in_their_order():
    x = torch.rand(1, 3, 4, 4)
    steps = Steps((Preprocess(None, (0.5,), (0.5,)), torch.exp))
    assert torch.equal(steps(x), ((x - 0.5) / 0.5).exp())


@pytest.mark.parametrize(
    "name", ["resnet", "hgnet", "poolformer", "bit", "judge", "judge/colour", "judge/style"]
)
def test_bundled_classifiers_are_what_they_were(name):
    classifier, x = load_classifier(f"emoji/{name}"), 1.4 * torch.rand(2, 3, 64, 64) - 0.2
    assert torch.equal(classifier(x), classifier.model((x - 0.5) / 0.5).logits)


def test_preprocessing_keeps_every_pixels_gradient():
    """No clamp, no random crop: two calls see the same image, and each pixel counts in both."""
    images = (3 * random_images(side=16) - 1).requires_grad_()
    process = m.Preprocess(8, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert torch.equal(process(images), process(images))
    # Resizing with antialiasing keeps the mean, so the gradient of it is even.
    (gradient,) = torch.autograd.grad(process(images).mean(), images)
    assert float(gradient.min()) > 0
    assert gradcheck(process, images, fast_mode=True)
