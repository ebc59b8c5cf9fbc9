"""The distance of spectrograms: loudness by frequency and time, without the phase; finite differences in float64."""

import math

import pytest
import torch
from torch.autograd import gradcheck

import adjointdpm as adp
from adjointdpm.metrics import SpectrogramDistance


def tone(cycles, samples=32768, phase=0.0):
    return torch.sin(2 * math.pi * cycles * torch.arange(samples, dtype=torch.float64) / 512 + phase)[None]


def test_the_gradient_is_that_of_finite_differences():
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(1, 2, 64, generator=generator, dtype=torch.float64) for _ in range(2))
    metric = SpectrogramDistance(y[0], windows=(8, 16))
    assert gradcheck(metric, x.requires_grad_())
    silence = torch.zeros(1, 2, 64, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(metric(silence).sum(), silence)
    assert bool(gradient.isfinite().all())


def test_a_factor_of_the_loudness_is_a_distance_of_its_logarithm():
    """Where all magnitudes are far above the floor."""
    noise = torch.randn(1, 4096, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    metric = SpectrogramDistance(noise, floor=1e-8)
    values = metric(torch.stack([noise, noise / 2, -noise, 4 * noise]))
    torch.testing.assert_close(
        values, torch.tensor([0, math.log(2), 0, math.log(4)]).double(), atol=1e-4, rtol=0
    )


def test_the_phase_does_not_count_and_the_pitch_does():
    metric = SpectrogramDistance(tone(8))
    same, shifted, near, far = metric(torch.stack([tone(8), tone(8, phase=1.0), tone(9), tone(40)]))
    assert float(same) == 0
    assert float(shifted) < 0.2 * float(near)
    assert float(near) < float(far)


def test_each_sound_of_a_batch_may_have_its_own_target():
    targets = torch.stack([tone(8), tone(40)])
    metric = SpectrogramDistance(targets)
    assert metric(targets).tolist() == [0, 0]
    assert float(metric(targets.flip(0)).min()) > 0


def test_what_does_not_fit_is_refused():
    for wrong in ({"windows": ()}, {"windows": (2,)}, {"floor": 0.0}):
        with pytest.raises(adp.InputError, match="windows of at least 4 samples and a floor above 0"):
            SpectrogramDistance(tone(8), **wrong)
    with pytest.raises(
        adp.InputError, match=r"the sounds are \(1, 4000\) and that of comparison \(1, 32768\)"
    ):
        SpectrogramDistance(tone(8))(tone(8, 4000)[None])
    with pytest.raises(adp.InputError, match="longer than half of the longest window, 2048"):
        SpectrogramDistance(tone(8, 1024))(tone(8, 1024)[None])
