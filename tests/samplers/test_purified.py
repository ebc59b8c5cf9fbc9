"""A purified classifier has the gradient of its whole chain, in the memory of one call, and replayable noise."""

import inspect

import diffusers
import pytest
import torch
from torch import nn

import adjointdpm as adp
from adjointdpm.optimization.seeds import key
from tests.conftest import BareModel
from tests.tiny.families import of
from tests.tiny.pipelines import vp


class Own(adp.Sampler):
    """Some other generator."""

    def encode(self, prompts, negative=None, graph=False):
        return adp.Cond()

    def noise(self, batch=1, seed=0):
        return torch.zeros(batch, 1)

    def forward(self, noise, cond):
        return noise


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
    own = key(seed, 0)  # of the first vote, for all images
    eps = torch.randn(x0.shape[1:], generator=torch.Generator().manual_seed(own), dtype=x0.dtype)
    start = schedule.end + t * (schedule.start - schedule.end)
    times = torch.linspace(start, schedule.end, steps + 1, dtype=torch.float64)
    alphas, sigmas = schedule.alpha(times), schedule.sigma(times)
    rhos, cond = sigmas / alphas, ours.encode([""] * len(images))
    y = x0 + rhos[0] * eps
    for i in range(steps):
        e = model.denoiser(alphas[i] * y, times[i], cond)
        y = y + (1 + eta**2) * (rhos[i + 1] - rhos[i]) * e
        if eta:
            xi = adp.StepNoise(own).normal(rhos[i], rhos[i + 1], y[:1])
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
    each = torch.stack([Classify()(part) for part in fixed._purified(image, 3).split(2)])
    assert not torch.allclose(each[0], each[1])  # another noise for each vote
    assert torch.allclose(each[0], Classify()(fixed.purify(image)), rtol=1e-12)
    assert torch.allclose(fixed(image), each.mean(0), rtol=1e-12)
    assert torch.equal(fixed.labels(image), each.argmax(2).mode(0).values)


@pytest.mark.parametrize("stepped", [adp.Euler(), adp.EulerMaruyama(), "DDPMScheduler"])
def test_with_a_seed_it_is_a_function_of_each_image_alone(stepped):
    """The logits of an image do not depend on its place in the batch, nor on what else is in it."""
    kind = getattr(diffusers, stepped) if isinstance(stepped, str) else None
    ours = pipeline_sampler(kind) if kind else sampler(stepped, steps=10)
    images = torch.rand(
        3, *ours.image_shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    fixed = adp.Purified(ours, Classify(), t=0.3, seed=3, votes=2)
    both = fixed(images)
    for order in ([2], [1, 0, 2], [2, 2]):
        assert torch.allclose(fixed(images[order]), both[order], rtol=1e-9)
    fresh = adp.Purified(ours, Classify(), t=0.3)
    same = fresh(images[[0, 0]])
    assert not torch.allclose(same[0], same[1])  # without one, each image has noise of its own


def test_the_samplers_stats_are_those_of_the_purification():
    ours = sampler(adp.EulerMaruyama(), steps=10)
    purified = adp.Purified(ours, Classify(), t=0.3)
    image = torch.rand(1, *ours.image_shape, dtype=torch.float64).requires_grad_()
    purified(image).sum().backward()
    assert purified.stats is purified.sampler.stats
    assert (purified.stats.nfe_forward, purified.stats.nfe_backward) == (6, 3)


def pipeline_sampler(scheduler, family="sd", steps=10, **config):
    pipe = of(family).make()
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            part.double().requires_grad_(False).eval()
    if family == "sdxl":  # whose pipeline would cast the VAE to float32 and back
        pipe.vae.register_to_config(force_upcast=False)
    if scheduler is not None:
        pipe.scheduler = vp(scheduler, **config)
    pipe.set_progress_bar_config(disable=True)
    # Without guidance; the distilled scale of Flux has another name.
    return adp.PipelineSampler(pipe, steps=steps, guidance_scale=1.0, arguments=of(family).size)


def image_to_image(ours, images, steps, seeds):
    """diffusers' own pipeline, by plain autograd."""
    pipe = diffusers.AutoPipelineForImage2Image.from_pipe(ours.pipe)
    pipe.set_progress_bar_config(disable=True)
    call = inspect.unwrap(type(pipe).__call__)
    taken = inspect.signature(call).parameters
    given = {k: v for k, v in {**ours.arguments, "negative_prompt": None}.items() if k in taken}
    if "true_cfg_scale" in taken:
        given["true_cfg_scale"] = 1.0
    elif "guidance_scale" in taken:
        given["guidance_scale"] = 1.0
    for name, tensor in ours.encode([""]).items():
        if not name.endswith("_lengths"):
            given[name] = tensor.expand(len(images), *tensor.shape[1:])
    if "prompt_embeds" in given and "list" in str(taken["prompt_embeds"].annotation).lower():
        given |= {k: list(v) for k, v in given.items() if k.endswith("prompt_embeds")}
    torch.manual_seed(seeds[0] ^ 0x57E9)
    generator = [torch.Generator().manual_seed(seed) for seed in seeds]
    return call(
        pipe, image=images, strength=steps / ours.steps, num_inference_steps=ours.steps, generator=generator,
        output_type="pt", return_dict=False, **given,
    )[0]  # fmt: skip


SCHEDULERS = {
    "DDIM": (diffusers.DDIMScheduler, {}),
    "DPM++": (diffusers.DPMSolverMultistepScheduler, {}),
    "Heun": (diffusers.HeunDiscreteScheduler, {}),
    "DDPM": (diffusers.DDPMScheduler, {}),
    "Euler ancestral": (diffusers.EulerAncestralDiscreteScheduler, {}),
    "SDE-DPM++": (diffusers.DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}),
    "DPM++ SDE": (diffusers.DPMSolverSDEScheduler, {}),
}


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.filterwarnings("ignore:Should have t:UserWarning")
def test_over_a_pipeline_it_is_the_image_to_image_pipeline_and_its_gradient(name):
    scheduler, config = SCHEDULERS[name]
    agrees_with_plain_autograd(pipeline_sampler(scheduler, **config))


@pytest.mark.parametrize("family", ["sdxl", "sd3", "flux", "qwen", "z-image"])
def test_so_it_is_over_pipelines_of_other_families(family):
    agrees_with_plain_autograd(pipeline_sampler(None, family))


def agrees_with_plain_autograd(ours):
    purified = adp.Purified(ours, Classify(), t=0.42, seed=5)
    assert purified.steps == 4
    shape = (2, *ours.image_shape)
    images = 0.2 + 0.6 * torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found, expected = images.clone().requires_grad_(), images.clone().requires_grad_()
    before = torch.get_rng_state()
    made = purified.purify(found)
    assert torch.equal(torch.get_rng_state(), before)
    plain = image_to_image(ours, expected, 4, [key(5, 0)] * 2)
    assert torch.allclose(made.clamp(0, 1), plain, rtol=1e-9, atol=1e-12)
    cotangent = torch.randn(2, 4, dtype=torch.float64)
    (a,) = torch.autograd.grad((Classify()(made.clamp(0, 1)) * cotangent).sum(), found)
    (b,) = torch.autograd.grad((Classify()(plain) * cotangent).sum(), expected)
    assert float(b.norm()) > 0
    assert float((a - b).norm() / b.norm()) < 1e-6
    kept = purified.replace(sampler=ours.replace(adjoint=adp.Backprop()))
    (c,) = torch.autograd.grad((Classify()(kept.purify(found).clamp(0, 1)) * cotangent).sum(), found)
    assert torch.equal(a, c)


@pytest.mark.parametrize(
    ("t", "steps", "n"), [(0.1, 5, 50), (0.3, 5, 17), (1.0, 3, 3), (0.02, 1, 50), (0.7, 49, 70)]
)
def test_steps_become_a_strength_that_every_pipeline_rounds_to_them(t, steps, n):
    ours = pipeline_sampler(diffusers.DDIMScheduler, steps=4)
    purified = adp.Purified(ours, Classify(), t=t, steps=steps)
    assert purified.sampler.steps == n
    assert int(n * purified.strength) == steps  # Stable Diffusion
    assert n - int(n - n * purified.strength) == steps  # Stable Diffusion 3, Flux
    again = purified.replace(seed=1)
    assert (again.sampler.steps, again.steps, again.strength) == (n, steps, purified.strength)


def test_what_a_pipeline_cannot_purify_is_refused():
    with pytest.raises(adp.InputError, match="no image-to-image pipeline for a DDPMPipeline"):
        adp.Purified(pipeline_sampler(None, "ddpm"), Classify())
    ours = pipeline_sampler(diffusers.DDIMScheduler)
    purified = adp.Purified(ours, Classify(), t=0.3)
    image = torch.rand(1, *ours.image_shape, dtype=torch.float64)
    with pytest.raises(adp.InputError, match="resize them first"):
        purified(image[..., :5, :5])
    with pytest.raises(adp.InputError, match=r"must lie in \[0, 1\].*they reach from -0"):
        purified(image - 1)
    short = purified.replace(sampler=ours.replace(adjoint=adp.Truncated(last=1)))
    with pytest.raises(adp.InputError, match="makes no gradient through the first of 3 steps"):
        short(image.requires_grad_())
    cond = ours.encode("").replace(step_noise=torch.zeros(1, 3, *ours.latent_shape, dtype=torch.float64))
    with pytest.raises(adp.InputError, match="follows from seeds"):
        ours.image_to_image(image.detach(), cond, strength=0.3, seeds=[0])
    with pytest.raises(adp.InputError, match="1 images and 2 seeds"):
        ours.image_to_image(image.detach(), ours.encode(""), strength=0.3, seeds=[0, 1])


def test_what_cannot_be_purified_is_refused():
    ours = sampler(adp.Euler(), steps=4)
    for given, message in (
        ({"t": 0.0}, "t is a share"),
        ({"t": 1.5}, "t is a share"),
        ({"votes": 0}, "votes must be"),
    ):
        with pytest.raises(adp.InputError, match=message):
            adp.Purified(ours, Classify(), **given)
    with pytest.raises(adp.InputError, match="a Own cannot; use a FlowSampler"):
        adp.Purified(Own(), Classify())
    with pytest.raises(adp.InputError, match="resize them first"):
        adp.Purified(ours, Classify())(torch.rand(1, 3, 5, 5, dtype=torch.float64))
    model = ours.model
    bare = BareModel(model.schedule, model.denoiser, tuple(model.latent_shape))
    strange = adp.Purified(
        adp.FlowSampler(bare, steps=4, guidance_scale=1.0), Classify(), cond=ours.encode([""])
    )
    with pytest.raises(adp.InputError, match="override encode_image"):
        strange(torch.rand(1, *model.latent_shape, dtype=torch.float64))
