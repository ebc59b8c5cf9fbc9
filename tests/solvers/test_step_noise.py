"""Noise of a step is a function of its seed and interval."""

import pytest
import torch

import adjointdpm as adp


def test_noise_is_a_function_of_seed_and_interval():
    like = torch.zeros(3, 2)
    a, b = (torch.tensor(v, dtype=torch.float64) for v in (2.0, 1.0))
    assert torch.equal(adp.StepNoise(1).normal(a, b, like), adp.StepNoise(1).normal(a, b, like))
    assert not torch.equal(adp.StepNoise(1).normal(a, b, like), adp.StepNoise(2).normal(a, b, like))
    assert not torch.equal(adp.StepNoise(1).normal(a, b, like), adp.StepNoise(1).normal(b, a, like))
    many = torch.cat([adp.StepNoise(s).normal(a, b, torch.zeros(1000)) for s in range(20)])
    assert abs(float(many.mean())) < 0.03
    assert float(many.std()) == pytest.approx(1, abs=0.02)
