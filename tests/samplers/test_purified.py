"""A purified classifier has the gradient of its whole chain, in the memory of one call, and replayable noise."""

import pytest
import torch
from torch import nn

import adjointdpm as adp
from tests.conftest import BareModel
from tests.tiny.families import of


class Classify(nn.Module):
    """Logits that are not linear in the image."""

    def forward(self, images):
        weight = torch.linspace(-1, 1, 12, dtype=images.dtype).view(4, 3)
        return torch.tanh(images).mean((2, 3)) @ weight.T + images.square().mean((1, 2, 3))[:, None]


def sampler(solver, steps=100):
    pipe = of("sd").make()
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        part.double().requires_grad_(False).eval()
    return adp.FlowSampler.from_pipeline(pipe, solver=solver, steps=steps, guidance_scale=1.0)


def by_hand(ours, images, t, steps, seed, eta):
    """Encode, noise, step and decode, written out with plain autograd."""
    model = ours.model
    config, schedule = model.vae.config, model.schedule
    x0 = model.vae.encode(2 * images - 1).latent_dist.mode() * config.scaling_factor
    eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(seed), dtype=x0.dtype)
    start = schedule.end + t * (schedule.start - schedule.end)
    times = torch.linspace(start, schedule.end, steps + 1, dtype=torch.float64)
    alphas, sigmas = schedule.alpha(times), schedule.sigma(times)
    rhos, cond = sigmas / alphas, ours.encode([""] * len(images))
    y = x0 + rhos[0] * eps
    for i in range(steps):
        e = model.denoiser(alphas[i] * y, times[i], cond)
        y = y + (1 + eta**2) * (rhos[i + 1] - rhos[i]) * e
        if eta:
            xi = adp.StepNoise(seed + 1).normal(rhos[i], rhos[i + 1], y)
            y = y + eta * (rhos[i] ** 2 - rhos[i + 1] ** 2).sqrt() * xi
    return model.vae.decode(alphas[-1] * y / config.scaling_factor).sample / 2 + 0.5


@pytest.mark.parametrize(
    ("solver", "eta"), [(adp.Euler(), 0.0), (adp.EulerMaruyama(), 1.0)], ids=["ODE", "SDE"]
)
def test_the_gradient_is_plain_autograds_through_a_hundred_steps(solver, eta):
    ours = sampler(solver)
    purified = adp.Purified(ours, Classify(), t=0.3, steps=100, seed=5)
    shape = (2, *ours.image_shape)
    images = torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found, expected = images.clone().requires_grad_(), images.clone().requires_grad_()
    logits = purified(found)
    plain = Classify()(by_hand(ours, expected, 0.3, 100, 5, eta))
    assert torch.allclose(logits, plain, rtol=1e-9)
    cotangent = torch.randn_like(plain)
    (a,) = torch.autograd.grad((logits * cotangent).sum(), found)
    (b,) = torch.autograd.grad((plain * cotangent).sum(), expected)
    assert float(b.norm()) > 0
    assert float((a - b).norm() / b.norm()) < 1e-6


@pytest.mark.parametrize("solver", [adp.Euler(), adp.EulerMaruyama()], ids=["ODE", "SDE"])
def test_memory_does_not_grow_with_the_steps(solver):
    """What is held besides the states, of which each takes as much as one image's latents."""
    held = []
    for steps in (10, 100):
        purified = adp.Purified(sampler(solver), Classify(), t=0.3, steps=steps, seed=0)
        image = torch.rand(1, *purified.sampler.image_shape, dtype=torch.float64).requires_grad_()
        purified(image).sum().backward()
        stats = purified.stats
        assert stats.nfe_backward == steps
        assert stats.states <= (steps + 1) * purified.sampler.noise(1).nbytes
        held.append(stats.recomputed + stats.kept + stats.decoder)
    assert held[1] <= 1.1 * held[0]


def test_noise_is_fresh_for_each_call_unless_there_is_a_seed():
    ours = sampler(adp.EulerMaruyama(), steps=10)
    image = torch.rand(2, *ours.image_shape, dtype=torch.float64)
    fresh = adp.Purified(ours, Classify(), t=0.2)
    assert fresh.steps == 2
    torch.manual_seed(0)
    first, second = fresh(image), fresh(image)
    torch.manual_seed(0)
    assert torch.equal(fresh(image), first)
    assert not torch.equal(first, second)
    fixed = adp.Purified(ours, Classify(), t=0.2, seed=3, votes=3)
    assert torch.equal(fixed(image), fixed(image))
    each = Classify()(fixed.purify(image.repeat(3, 1, 1, 1))).view(3, 2, 4)
    assert not torch.allclose(each[0], each[1])  # another noise for each vote
    assert torch.allclose(fixed(image), each.mean(0), rtol=1e-12)
    assert torch.equal(fixed.labels(image), each.argmax(2).mode(0).values)


def test_what_cannot_be_purified_is_refused():
    ours = sampler(adp.Euler(), steps=4)
    for given, message in (
        ({"t": 0.0}, "t is a share"),
        ({"t": 1.5}, "t is a share"),
        ({"votes": 0}, "votes must be"),
    ):
        with pytest.raises(adp.InputError, match=message):
            adp.Purified(ours, Classify(), **given)
    with pytest.raises(adp.InputError, match="a PipelineSampler cannot; use FlowSampler"):
        adp.Purified(adp.PipelineSampler(ours.pipe, steps=2), Classify())
    with pytest.raises(adp.InputError, match="resize them first"):
        adp.Purified(ours, Classify())(torch.rand(1, 3, 5, 5, dtype=torch.float64))
    model = ours.model
    bare = BareModel(model.schedule, model.denoiser, tuple(model.latent_shape))
    strange = adp.Purified(
        adp.FlowSampler(bare, steps=4, guidance_scale=1.0), Classify(), cond=ours.encode([""])
    )
    with pytest.raises(adp.InputError, match="override encode_image"):
        strange(torch.rand(1, *model.latent_shape, dtype=torch.float64))
