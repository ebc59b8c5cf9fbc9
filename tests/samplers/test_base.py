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


@pytest.mark.parametrize("kind", ["flow", "pipeline"])
def test_the_samplers_guidance_scale_counts_whatever_encoded_the_prompt(kind):
    """A conditioning holds no scale of its own, unless its gradient is taken."""
    flow = adp.load_bundled("emoji", steps=2, guidance_scale=3.0)
    pipe = flow.model.pipe
    pipe.set_progress_bar_config(disable=True)
    low = flow if kind == "flow" else adp.PipelineSampler(pipe, steps=2, guidance_scale=3.0)
    high = low.replace(guidance_scale=6.0)
    noise, cond = low.noise(1), low.encode("a red apple", "blue")
    assert set(cond) == {"prompt_embeds", "negative_prompt_embeds"}
    with torch.no_grad():
        assert torch.equal(high(noise, cond), high(noise, high.encode("a red apple", "blue")))
        assert not torch.equal(high(noise, cond), low(noise, cond))
        assert torch.equal(high(noise, low.with_guidance(cond)), low(noise, cond))
    held = low.with_guidance(cond).requires_grad_()
    (slope,) = torch.autograd.grad(low(noise, held).double().square().sum(), held["guidance_scale"])
    with torch.no_grad():
        up, down = (
            low.replace(guidance_scale=3.0 + h)(noise, cond).double().square().sum() for h in (1e-2, -1e-2)
        )
    assert float(slope) == pytest.approx(float(up - down) / 2e-2, rel=0.02)


@pytest.mark.parametrize("kind", ["flow", "pipeline"])
def test_a_samplers_negative_prompt_is_that_of_every_prompt_without_one(kind):
    flow = adp.load_bundled("emoji", steps=2, guidance_scale=3.0)
    flow.model.pipe.set_progress_bar_config(disable=True)
    plain = flow if kind == "flow" else adp.PipelineSampler(flow.model.pipe, steps=2, guidance_scale=3.0)
    blue = plain.replace(negative_prompt="blue")
    name = "negative_prompt_embeds"
    given = plain.encode("a red apple", "blue")[name]
    assert torch.equal(blue.encode("a red apple")[name], given)
    assert torch.equal(blue.replace(steps=3).encode("a red apple")[name], given)
    assert torch.equal(blue.encode("a red apple", "")[name], plain.encode("a red apple")[name])
    assert not torch.equal(plain.encode("a red apple")[name], given)


def test_guidance_for_want_of_negative_embeddings_is_an_error():
    sampler = adp.load_bundled("emoji", steps=2, guidance_scale=1.0)
    noise, cond = sampler.noise(1), sampler.encode("a red apple")
    with torch.no_grad():
        sampler(noise, cond)
    with pytest.raises(adp.InputError, match=r"no negative_prompt_embeds, and guidance_scale = 5 needs it"):
        sampler.replace(guidance_scale=5.0)(noise, cond)


def test_a_sampler_without_an_inversion_says_so():
    sampler = adp.load_bundled("emoji", steps=2)
    with pytest.raises(
        adp.InputError, match=r"FlowSampler has no inversion of its own; use .* override invert"
    ):
        adp.Sampler.invert(sampler, torch.zeros(1, 3, 64, 64), adp.Cond())
