"""The projection onto white noise: both norms of every block, idempotent, and the nearest point."""

import math

import pytest
import torch

import adjointdpm as adp
from adjointdpm.optimization.white_noise import projected


def blocks(x):
    """The compact spectrum in blocks of 16, by the plain DFT matrix."""
    size = x.shape[1]
    k = torch.arange(size, dtype=torch.float64)
    dft = torch.polar(torch.ones(size, size, dtype=torch.float64), -2 * math.pi * k[:, None] * k / size)
    spectrum = x.to(torch.complex128) @ dft / size**0.5
    ends = torch.complex(spectrum[:, 0].real, spectrum[:, size // 2].real) / 2**0.5
    return torch.cat([ends[:, None], spectrum[:, 1 : size // 2]], 1).split(16, 1)


def noise(size, batch=3, seed=0):
    return torch.randn(batch, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [64, 128, 98, 106])
def test_every_block_has_the_norms_of_white_noise(size):
    """Of patterns, too: a wave, and smooth noise. 98 leaves a block of one value, which joins the one before."""
    wave = torch.sin(torch.arange(size, dtype=torch.float64))[None]
    smooth = noise(size).cumsum(1)
    for x in (noise(size), wave + 1e-3 * noise(size, 1), smooth):
        made = projected(x)
        assert made.square().sum(1).tolist() == pytest.approx([size] * len(x), rel=1e-12)
        found = list(blocks(made))
        if found[-1].shape[1] == 1:
            found[-2:] = [torch.cat(found[-2:], 1)]
        for y in found:
            count = y.shape[1]
            assert y.abs().sum(1).tolist() == pytest.approx([math.pi**0.5 / 2 * count] * len(x), rel=1e-9)
            assert y.abs().square().sum(1).tolist() == pytest.approx([count] * len(x), rel=1e-9)
        assert torch.allclose(projected(made), made, atol=1e-7)


def test_no_white_noise_is_nearer():
    """Among 400 white points along the way to others, which cover the neighborhood of the projection."""
    x = noise(64, 1, 5) + 2 * torch.sin(torch.arange(64, dtype=torch.float64))
    nearest = projected(x)
    least = float((nearest - x).norm())
    for seed in range(400):
        other = projected(nearest + (0.01 + 0.001 * seed) * noise(64, 1, 100 + seed))
        assert float((other - x).norm()) >= least * (1 - 1e-9)


def test_random_noise_is_almost_white():
    """The paper's figure: a cosine of at least 0.988."""
    x = noise(4096, 64)
    cosine = torch.cosine_similarity(x, projected(x), dim=1)
    assert float(cosine.min()) > 0.98
    smooth = noise(4096, 64).cumsum(1)
    assert float(torch.cosine_similarity(smooth, projected(smooth), dim=1).max()) < 0.5


def test_shape_and_dtype_are_kept_and_small_noise_is_refused():
    x = torch.randn(2, 4, 4, 8, dtype=torch.bfloat16)
    assert projected(x).shape == x.shape
    assert projected(x).dtype == x.dtype
    for shape in ((2, 3, 1, 1), (2, 99)):
        with pytest.raises(adp.InputError, match="even number of values, at least 64, but it has"):
            projected(torch.randn(shape))
