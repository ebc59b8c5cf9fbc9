import pytest
import torch

from adjointdpm.metrics import psnr, ssim


def test_psnr_is_of_the_mean_square():
    x = torch.zeros(2, 3, 8, 8)
    assert psnr(x, x + 0.01).tolist() == pytest.approx([40.0, 40.0], abs=1e-3)


def test_ssim_is_one_for_the_same_image_falls_with_noise_and_is_symmetric():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(1, 3, 32, 32, generator=generator)
    values = [float(ssim(x, (x + s * torch.randn(x.shape, generator=generator)))) for s in (0.0, 0.1, 0.5)]
    assert values[0] == pytest.approx(1.0, abs=1e-5)
    assert values[0] > values[1] > values[2] > -1
    y = torch.rand(1, 3, 32, 32, generator=generator)
    torch.testing.assert_close(ssim(x, y), ssim(y, x))


def test_ssim_of_constants_is_the_formula_of_the_means():
    a, b = (torch.full((1, 3, 16, 16), v, dtype=torch.float64) for v in (0.2, 0.6))
    expected = (2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4)
    assert float(ssim(a, b)) == pytest.approx(expected, rel=1e-6)
