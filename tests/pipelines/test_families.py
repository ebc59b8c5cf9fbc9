"""Every family of stock pipelines as a vector field: its own images, and exact gradients of everything."""

from contextlib import nullcontext

import pytest
import torch

import adjointdpm as adp
from adjointdpm.pipelines.call_signature import own_call
from tests.tiny.families import FAMILIES

EACH = pytest.mark.parametrize("family", FAMILIES, ids=str)
PROMPTED = [family for family in FAMILIES if family.guidance]


def stock(family, pipe, cond, noise, steps, **options):
    """The pipeline itself, its own scheduler stepping."""
    if family.guidance is None:  # draws its noise from the generator
        return pipe(batch_size=len(noise), num_inference_steps=steps, **options).images
    return pipe(**family.arguments(cond), latents=noise, num_inference_steps=steps, **options).images


def driven(sampler, pipe, cond, noise, steps, generator=None):
    """The pipeline's scheduler stepping on what the probe says."""
    scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    scheduler.set_timesteps(**sampler.model._call.timestep_arguments(steps, noise))
    x = noise * getattr(scheduler, "init_noise_sigma", 1.0)
    extra = {"generator": generator} if generator else {}
    for t in scheduler.timesteps:
        shown = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        out = sampler.model.denoiser(shown, t.double(), cond)
        x = scheduler.step(out, t, x, return_dict=False, **extra)[0]
    return x


@EACH
@pytest.mark.parametrize("guided", [True, False], ids=["guided", "plain"])
def test_the_pipelines_own_images_to_the_last_bit(family, guided):
    pipe, cond = family.make(), family.cond(2, guided)
    sampler = family.sampler(pipe)
    generators = [torch.Generator().manual_seed(3) for _ in range(2)]
    noise = family.noise(2)
    options = {"output_type": "pt"}
    if family.guidance is None:
        noise = torch.randn(noise.shape, generator=generators[0])
        options["generator"] = generators[1]
    theirs = stock(family, pipe, cond, noise, 4, **options)
    with torch.no_grad():
        ours = sampler.decode(
            driven(sampler, pipe, cond, noise, 4, generators[0] if not family.guidance else None)
        )
    assert ours.shape == (2, *sampler.image_shape)
    assert torch.equal(ours.clamp(0, 1), theirs)


@EACH
def test_checkpointed_is_backprop_bit_for_bit(family):
    pipe, noise, cond = family.make(), family.noise(2).requires_grad_(), family.cond(2).requires_grad_()
    sampler = family.sampler(pipe, steps=3)
    leaves = [noise, *(cond[name] for name in cond.differentiable), *sampler.model.denoiser.parameters()]
    found = []
    for adjoint in (adp.Backprop(), adp.Checkpointed()):
        image = sampler.replace(adjoint=adjoint)(noise, cond)
        found.append(torch.autograd.grad(image.square().sum(), leaves, allow_unused=True))
    named = [name for name, _ in sampler.model.denoiser.named_parameters()]
    for i, (a, b) in enumerate(zip(*found, strict=True)):
        if a is None:  # weights of layers that this network's call never reaches
            assert i >= 1 + len(cond.differentiable), named[i - 1 - len(cond.differentiable)]
            assert b is None
            continue
        assert torch.equal(a, b)
        assert bool(torch.isfinite(a).all())
    assert all(float(g.abs().max()) > 0 for g in found[0][: 1 + len(cond.differentiable)])


@EACH
def test_the_continuous_adjoint_works_there(family):
    """Near the exact gradient of the same sampler, for the noise, every embedding and the guidance scale."""
    pipe, noise, cond = family.make(), family.noise().requires_grad_(), family.cond().requires_grad_()
    sampler = family.sampler(pipe, solver=adp.RK4())
    leaves = [noise, *(cond[name] for name in cond.differentiable)]
    # A short span, over which even an untrained network is smooth at four steps.
    grid = torch.linspace(0.6, 0.5, 5, dtype=torch.float64) * sampler.model.schedule.start
    found = []
    for adjoint in (adp.Checkpointed(), adp.CoarseAdjoint(solver=adp.RK4())):
        latents = sampler.replace(adjoint=adjoint, grid=grid).latents(noise, cond)
        found.append(torch.autograd.grad(latents.square().sum(), leaves))
    for exact, near in zip(*found, strict=True):
        assert float((near - exact).norm()) < 1e-3 * float(exact.norm())


@pytest.mark.parametrize("family", [f for f in FAMILIES if f.readable], ids=str)
@pytest.mark.parametrize("guided", [True, False], ids=["guided", "plain"])
def test_encode_reads_prompts_as_the_pipeline_does(family, guided):
    """Strings through the stock pipeline, against our conditioning through the same pipeline."""
    pipe, noise = family.make(), family.noise(2)
    scale = 3.0 if guided else 0.0
    sampler = family.sampler(pipe, guidance_scale=scale)
    with nullcontext() if guided else pytest.warns(UserWarning, match="negative prompt 'blue' is ignored"):
        cond = sampler.encode(["a red apple", "a cat on dog"], negative="blue")
    assert family.guidance[0] not in cond
    scaled = sampler.with_guidance(cond)
    assert (family.guidance[0] in scaled) == guided
    assert set(scaled.differentiable) == set(family.cond(2, guided).differentiable)
    options = {
        "num_inference_steps": 2,
        "output_type": "latent",
        "latents": noise,
        family.guidance[0]: scale,
    }
    given = {k: v for k, v in family.arguments(cond).items() if k != family.guidance[0]}
    theirs = pipe(**{**given, **options}).images
    others = {k: v for k, v in given.items() if k not in cond and k != "negative_prompt"}
    words = pipe(
        ["a red apple", "a cat on dog"], negative_prompt=["blue"] * 2, **{**others, **options}
    ).images
    assert torch.equal(theirs, words)


@pytest.mark.parametrize(
    "family", [f for f in PROMPTED if f.name in ("sd3", "flux", "z-image", "qwen")], ids=str
)
def test_euler_on_the_own_grid_is_the_flow_pipelines_sampler(family):
    """Shift and resolution included: the same times, so the same image to the rounding of sigma."""
    pipe, cond, noise = family.make(), family.cond(), family.noise()
    theirs = stock(family, pipe, cond, noise, 6, output_type="latent")
    sampler = family.sampler(pipe, solver=adp.Euler(), steps=6)
    with torch.no_grad():
        ours = sampler.latents(noise, cond)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-5 * float(theirs.abs().max()))


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")  # in schedulers
@pytest.mark.parametrize("family", PROMPTED, ids=str)
def test_the_gradient_is_that_of_the_pipelines_own_call(family):
    """Plain autograd through the undecorated call, all of its steps, against steps through the probe."""
    pipe, cond, found = family.make(), family.cond().requires_grad_(), []
    sampler = family.sampler(pipe)
    for ours in (False, True):
        noise = family.noise().requires_grad_()
        if ours:
            latents = driven(sampler, pipe, cond, noise, 3)
        else:
            given = family.arguments(cond) | {family.guidance[0]: cond[family.guidance[0]]}
            latents = own_call(type(pipe))(
                pipe, **given, latents=noise, num_inference_steps=3, output_type="latent"
            ).images
        leaves = [noise, *(cond[name] for name in cond.differentiable)]
        found.append((latents, *torch.autograd.grad(latents.square().sum(), leaves)))
    assert torch.equal(found[0][0], found[1][0])
    # Each of our calls multiplies the latents by init_noise_sigma = 1 (in three families) and prepares
    # the embeddings anew, so that the same summands are added in another order: a bit or two.
    for a, b in zip(*(each[1:] for each in found), strict=True):
        assert float((a - b).norm()) < 1e-6 * float(b.norm())
    if family.name not in ("sd", "sdxl", "pixart"):
        assert torch.equal(found[0][1], found[1][1])
