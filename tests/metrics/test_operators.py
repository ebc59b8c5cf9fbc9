import io

import numpy as np
import pytest
import torch
from PIL import Image

import adjointdpm as adp
from adjointdpm.metrics.operators import (
    OPERATORS,
    BoxBlur,
    Downsample,
    GaussianBlur,
    Grayscale,
    Mask,
    PhaseRetrieval,
    SmoothJPEG,
    operator_of,
)

LINEAR = [Mask(0.5), BoxBlur(5), GaussianBlur(2.0), Downsample(4), Grayscale()]


def images(seed=0, size=16):
    return torch.rand(2, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("operator", LINEAR, ids=repr)
def test_linear_operators_are_linear_and_keep_a_constant(operator):
    a, b = images(0), images(1)
    torch.testing.assert_close(operator(0.3 * a - 2 * b), 0.3 * operator(a) - 2 * operator(b))
    if not isinstance(operator, Mask):
        constant = operator(torch.full_like(a, 0.7))
        torch.testing.assert_close(constant, torch.full_like(constant, 0.7))


@pytest.mark.parametrize("name", OPERATORS)
def test_gradients_are_those_of_finite_differences(name):
    x = images(size=8)[:1].requires_grad_()
    assert torch.autograd.gradcheck(OPERATORS[name](), (x,), eps=1e-6, atol=1e-5)


def test_a_mask_hides_the_middle_square_alone():
    kept = Mask(0.5)(torch.ones(1, 3, 16, 16))
    assert float(kept[..., 4:12, 4:12].sum()) == 0
    assert float(kept.sum()) == 3 * (256 - 64)


def test_a_blur_is_the_gaussian_of_its_deviation():
    point = torch.zeros(1, 3, 33, 33, dtype=torch.float64)
    point[..., 16, 16] = 1
    row = GaussianBlur(2.0)(point)[0, 0].sum(0)
    place = torch.arange(33, dtype=torch.float64) - 16
    assert float((row * place**2).sum()) == pytest.approx(4.0, rel=0.03)  # cut off at three deviations


def test_smooth_jpeg_is_near_what_a_file_of_that_quality_keeps():
    """One channel, whose table is that of luminance; an image of smooth waves, as JPEG is for."""
    place = torch.linspace(0, 3.0, 32, dtype=torch.float64)
    gray = 0.5 + 0.2 * torch.sin(place)[:, None] + 0.2 * torch.cos(2 * place)[None]
    buffer = io.BytesIO()
    Image.fromarray((gray * 255).round().byte().numpy(), "L").save(buffer, "JPEG", quality=20)
    kept = torch.from_numpy(np.asarray(Image.open(buffer)).astype("float64")) / 255
    smooth = SmoothJPEG(20)(gray[None, None])[0, 0]
    assert float((smooth - kept).square().mean()) < 0.5 * float((gray - kept).square().mean()) + 1e-4


def test_phases_are_not_measured():
    x = images()[:1]
    measured = PhaseRetrieval(2.0)
    torch.testing.assert_close(measured(x), measured(x.flip(2, 3)))  # the same absolute values
    assert float(measured(x).square().sum()) == pytest.approx(float(x.square().sum()), rel=1e-6)  # Parseval


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("smear", "no operator is called 'smear'; there are mask, box, blur"),
        ("blur:radius=2", "has no setting 'radius'; it has sigma"),
        ("blur:sigma=x", "must be a number, but is 'x'"),
        ("downsample:factor=1e1", "must be a whole number, but is '1e1'"),
        ("blur:sigma=2,sigma=3", "blur:sigma is given twice"),
        ("blur:sigma=-1", "above 0"),
        ("box:size=4", "must be odd"),
        ("jpeg:quality=0", "at least 1"),
    ],
)
def test_texts_that_name_no_operator_are_refused(text, words):
    with pytest.raises(adp.InputError, match=words):
        operator_of(text)


def test_texts_name_operators_with_settings():
    assert operator_of("downsample:factor=2") == Downsample(2)
    assert operator_of("gray") == Grayscale()
    with pytest.raises(adp.InputError, match="divides both"):
        Downsample(5)(images())
    with pytest.raises(adp.InputError, match="8 x 8"):
        SmoothJPEG()(images(size=12))
