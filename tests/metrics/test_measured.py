import pytest
import torch

import adjointdpm as adp
from adjointdpm.metrics import Measured
from adjointdpm.metrics.operators import Downsample, GaussianBlur


def test_noise_of_its_deviation_leaves_one_half():
    x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    y = GaussianBlur(2.0)(x)
    y = y + 0.1 * torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    assert float(Measured(GaussianBlur(2.0), y, sigma=0.1)(x)) == pytest.approx(0.5, rel=0.03)


def test_the_gradient_of_a_linear_measurement_is_its_transpose_of_the_residual():
    x = torch.rand(2, 3, 8, 8, dtype=torch.float64).requires_grad_()
    operator, y = Downsample(2), torch.rand(1, 3, 4, 4, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(Measured(operator, y, sigma=0.5)(x).sum(), x)
    residual = (operator(x) - y).repeat_interleave(2, 2).repeat_interleave(2, 3) / 4
    torch.testing.assert_close(gradient, residual / (0.25 * 48))


def test_any_function_of_images_is_an_operator_and_the_metric_adds_up():
    metric = 2 * Measured(lambda x: x.mean((2, 3)), torch.zeros(1, 3), sigma=1.0) + adp.metrics.Chroma()
    assert float(metric(torch.ones(1, 3, 8, 8))) == pytest.approx(1.0)


def test_a_measurement_that_does_not_fit_is_refused():
    x = torch.rand(2, 3, 8, 8)
    with pytest.raises(adp.InputError, match=r"operator gives .* but the measurement y is"):
        Measured(Downsample(2), torch.zeros(1, 3, 8, 8))(x)
    with pytest.raises(adp.InputError, match="measurement y is"):
        Measured(Downsample(2), torch.zeros(3, 3, 4, 4))(x)
    with pytest.raises(adp.InputError, match="sigma"):
        Measured(Downsample(2), torch.zeros(1, 3, 4, 4), sigma=0.0)
    with pytest.raises(adp.InputError, match="NaN"):
        Measured(Downsample(2), torch.full((1, 3, 4, 4), torch.nan))
