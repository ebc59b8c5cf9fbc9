"""A pipeline's own sampling, inverted for schedulers that add no noise."""

import diffusers
import pytest
import torch

import adjointdpm as adp
from tests.samplers.test_pipeline_sampler import cond, sampler_of, small
from tests.tiny.pipelines import vp


def problem(kind, steps, guidance=1.5, **config):
    pipe = small(vp(kind, **config)).to(torch.float64)
    pipe.vae.register_to_config(
        scaling_factor=9.0
    )  # so that latents have the size that the random network makes
    sampler = sampler_of(pipe, steps=steps, guidance_scale=guidance)
    given = adp.Cond({name: each.double() for name, each in cond().items() if name != "guidance_scale"})
    sampler._example = given
    images = torch.rand(1, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return sampler, images, given


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        (diffusers.DDIMScheduler, {}),
        (diffusers.DPMSolverMultistepScheduler, {"timestep_spacing": "leading"}),
        (diffusers.HeunDiscreteScheduler, {"timestep_spacing": "leading"}),
    ],
)
@torch.no_grad()
def test_the_noise_of_an_image_makes_that_image_again(kind, config):
    sampler, images, given = problem(kind, 6, **config)
    noise = sampler.invert(images, given, tolerance=1e-5)
    stats = sampler.stats
    vae = sampler.pipe.vae
    latents = 9.0 * vae.encode(2 * images - 1).latent_dist.mode()
    assert float((sampler.latents(noise, given) - latents).norm() / latents.norm()) <= 1e-5
    assert stats.drift <= 1e-5
    torch.testing.assert_close(
        sampler(noise, given), vae.decode(latents / 9).sample / 2 + 0.5, rtol=0, atol=1e-3
    )


def test_the_gradient_reaches_image_and_prompt():
    sampler, images, given = problem(diffusers.DDIMScheduler, 2)
    for part in (sampler.pipe.unet, sampler.pipe.vae):
        part.requires_grad_(False)
    images.requires_grad_()
    embeds = given["prompt_embeds"].requires_grad_()
    generator = torch.Generator().manual_seed(3)
    direction = torch.randn(1, 4, 8, 8, dtype=torch.float64, generator=generator)

    def loss(images, embeds):
        return (
            sampler.invert(images, given.replace(prompt_embeds=embeds), tolerance=1e-9) * direction
        ).sum()

    gradients = torch.autograd.grad(loss(images, embeds), [images, embeds])
    with torch.no_grad():
        for i, (at, eps) in enumerate(((images, 1e-5), (embeds, 1e-3))):
            move = eps * torch.randn(at.shape, dtype=torch.float64, generator=generator)
            pair = [images, embeds]
            ends = []
            for sign in (1, -1):
                pair[i] = at + sign * move
                ends.append(loss(*pair))
            change = (ends[0] - ends[1]) / 2
            torch.testing.assert_close(change, (gradients[i] * move).sum(), rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize(
    "kind",
    [diffusers.EulerAncestralDiscreteScheduler, diffusers.DDPMScheduler, diffusers.DPMSolverSDEScheduler],
)
@pytest.mark.filterwarnings("ignore:Should have t:UserWarning")
def test_a_scheduler_that_adds_noise_is_refused_in_one_line_before_any_call(kind):
    sampler, images, given = problem(kind, 3)
    message = rf"{kind.__name__} adds noise in its steps, .*\.from_config\(pipe.scheduler.config\), or FlowSampler"
    with pytest.raises(adp.InputError, match=message):
        sampler.invert(images, given)
    assert sampler.stats.nfe_forward == 0


def test_what_does_not_fit_is_refused():
    sampler, images, given = problem(diffusers.DDIMScheduler, 2)
    with pytest.raises(adp.InputError, match=r"makes images of \(3, 16, 16\), but \(1, 3, 16, 8\)"):
        sampler.invert(images[..., :8], given)
    with pytest.raises(adp.InputError, match="tolerance must be above 0"):
        sampler.invert(images, given, tolerance=0.0)
