"""Choices follow from a seed and the noise, and from nothing else."""

import torch

from adjointdpm.adjoints.draws import draws
from adjointdpm.adjoints.surrogate import equally_spaced


def test_other_noise_and_other_seeds_choose_other_calls():
    noise = [torch.randn(1, 3, generator=torch.Generator().manual_seed(i)) for i in range(40)]
    first = [equally_spaced(3, 50, draws(0, each))[0] for each in noise]
    assert len(set(first)) > 8
    assert first == [equally_spaced(3, 50, draws(0, each.clone()))[0] for each in noise]
    assert len({draws(seed, noise[0]).random() for seed in range(20)}) == 20
