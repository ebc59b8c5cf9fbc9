"""What samplers share: noise by seed, prompts, and a conditioning for a batch."""

import pytest
import torch

import adjointdpm as adp
from adjointdpm.samplers.base import for_batch, listed, normal


def test_noise_is_its_seeds_in_at_least_float32():
    half, single = (normal((2, 3), 5, torch.zeros(1, dtype=d)) for d in (torch.float16, torch.float32))
    assert torch.equal(half, single)
    assert torch.equal(single, torch.randn(2, 3, generator=torch.Generator().manual_seed(5)))
    assert not torch.equal(single, normal((2, 3), 6, single))


def test_one_prompt_serves_a_batch_and_its_gradient_is_the_sum():
    leaf = torch.ones(1, 2, requires_grad=True)
    wide = for_batch(adp.Cond({"prompt_embeds": leaf}), 3)["prompt_embeds"]
    (gradient,) = torch.autograd.grad((wide * torch.arange(6.0).view(3, 2)).sum(), leaf)
    assert gradient.tolist() == [[6.0, 9.0]]
    with pytest.raises(adp.InputError, match="is for a batch of 2 and the noise for 3"):
        for_batch(adp.Cond({"prompt_embeds": torch.ones(2, 2)}), 3)
    with pytest.raises(adp.InputError, match="at least one prompt, but the list is empty"):
        listed([])
