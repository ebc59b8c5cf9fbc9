"""Every family of stock pipelines as a vector field: its own images, and exact gradients of everything."""

import diffusers
import pytest
import torch

import adjointdpm as adp
from adjointdpm.arguments import arguments_of, own_call
from tests.tiny_families import FAMILIES

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
    scheduler.set_timesteps(**sampler.field._call.asks(steps, noise))
    x = noise * getattr(scheduler, "init_noise_sigma", 1.0)
    extra = {"generator": generator} if generator else {}
    for t in scheduler.timesteps:
        shown = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        out = sampler.field.denoiser(shown, t.double(), cond)
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
    leaves = [noise, *(cond[name] for name in cond.differentiable), *sampler.field.denoiser.parameters()]
    found = []
    for adjoint in (adp.Backprop(), adp.Checkpointed()):
        image = sampler.replace(adjoint=adjoint)(noise, cond)
        found.append(torch.autograd.grad(image.square().sum(), leaves, allow_unused=True))
    named = [name for name, _ in sampler.field.denoiser.named_parameters()]
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
    grid = torch.linspace(0.6, 0.5, 5, dtype=torch.float64) * sampler.field.schedule.start
    found = []
    for adjoint in (adp.Checkpointed(), adp.Continuous(solver=adp.RK4())):
        latents = sampler.replace(adjoint=adjoint, grid=grid).latents(noise, cond)
        found.append(torch.autograd.grad(latents.square().sum(), leaves))
    for exact, near in zip(*found, strict=True):
        assert float((near - exact).norm()) < 1e-3 * float(exact.norm())


@pytest.mark.parametrize("family", [f for f in FAMILIES if f.readable], ids=str)
@pytest.mark.parametrize("scale", [3.0, 1.0], ids=["guided", "plain"])
def test_encode_reads_prompts_as_the_pipeline_does(family, scale):
    """Strings through the stock pipeline, against our conditioning through the same pipeline."""
    pipe, noise = family.make(), family.noise(2)
    sampler = family.sampler(pipe, guidance_scale=scale)
    with torch.no_grad():  # the attention kernels of inference, as in the pipeline
        cond = sampler.encode(["a red apple", "a cat on dog"], negative="blue")
    assert (family.guidance[0] in cond) == (scale > 1)
    assert set(cond) == set(family.cond(2, scale > 1))
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
    """Shift and resolution included: the same times, so the same picture to the rounding of sigma."""
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


def of(name):
    return next(family for family in FAMILIES if family.name == name)


def test_masks_travel_and_have_no_gradient():
    family = of("pixart")
    sampler, cond = family.sampler(steps=2), family.cond().requires_grad_()
    assert set(cond) - set(cond.differentiable) == {
        "prompt_attention_mask",
        "negative_prompt_attention_mask",
    }
    sampler(family.noise(), cond).sum().backward()
    masked = cond["prompt_embeds"].grad[0]
    assert not bool(masked[-1].any())  # its mask is off
    assert bool(masked[:-1].any())
    metric = lambda images: images.mean((1, 2, 3))  # noqa: E731
    with pytest.raises(adp.InputError, match="variables are some of noise, prompt_embeds, neg"):
        adp.gradients(sampler, metric, family.noise(), cond, ["prompt_attention_mask"])
    with pytest.raises(adp.InputError, match=r"prompt_embeds.*floating point"):
        sampler(family.noise(), cond.replace(prompt_embeds=torch.ones(1, 5, 8, dtype=torch.long)))


def test_samples_of_different_lengths():
    """Padding beyond a sample's own length is not seen."""
    family = of("z-image")
    sampler, noise, cond = family.sampler(steps=2), family.noise(2), family.cond(2)
    lengths = {
        "prompt_embeds_lengths": torch.tensor([5, 3]),
        "negative_prompt_embeds_lengths": torch.tensor([4, 5]),
    }
    both = sampler(noise, cond.replace(**lengths))
    for i in range(2):
        cut = {k: v[i : i + 1, : int(lengths[k + "_lengths"][i])] for k, v in cond.items() if v.ndim}
        alone = sampler(noise[i : i + 1], cond.replace(**cut))
        torch.testing.assert_close(both[i : i + 1], alone, rtol=1e-4, atol=1e-5)


def test_prompts_of_different_lengths_are_padded():
    family = of("z-image")
    pipe = family.make()
    rows = [torch.randn(5, 8), torch.randn(3, 8)]
    pipe.encode_prompt = None  # the class's own is asked

    class Read(type(pipe)):
        __call__ = type(pipe).__call__

        def encode_prompt(self, prompt, **_):
            return rows, [each + 1 for each in rows]

    pipe.__class__ = Read
    cond = family.sampler(pipe, guidance_scale=2.0).encode(["long", "short"])
    assert cond["prompt_embeds_lengths"].tolist() == [5, 3]
    assert torch.equal(cond["prompt_embeds"][1, :3], rows[1])
    assert torch.equal(cond["negative_prompt_embeds"][0], rows[0] + 1)


@pytest.mark.parametrize("name", ["sd", "flux", "qwen", "z-image"])
def test_guidance_that_the_pipeline_would_ignore(name):
    """Its gradient would be missing, and the negative prompt's, without a word."""
    family = of(name)
    off = 0.0 if name == "z-image" else 1.0
    cond = family.cond().replace(**{family.guidance[0]: torch.tensor(off)})
    with pytest.raises(adp.InputError, match="would ignore"):
        family.sampler(steps=1)(family.noise(), cond)


def test_the_scale_that_a_distilled_model_embeds_is_a_number():
    family = of("flux")
    sampler, cond, noise = family.sampler(steps=1), family.cond(), family.noise()
    three, own = (sampler(noise, cond.replace(guidance_scale=torch.tensor(v))) for v in (1.0, 3.5))
    assert torch.equal(own, sampler(noise, cond))
    assert not torch.equal(three, own)
    asked = cond.replace(guidance_scale=torch.tensor(1.0, requires_grad=True))
    with pytest.raises(adp.InputError, match=r"guidance_scale.*without requires_grad"):
        sampler(noise, asked)


def test_split_guidance_is_refused_where_it_would_be_another_field():
    for name in ("flux", "qwen", "z-image"):
        with pytest.raises(adp.InputError, match="cannot be split"):
            of(name).sampler(split_guidance=True)
    for name in ("sdxl", "sd3", "pixart", "sana"):
        family = of(name)
        pipe, noise, cond = family.make(), family.noise(), family.cond()
        whole, split = (
            family.sampler(pipe, steps=2, split_guidance=each)(noise, cond) for each in (False, True)
        )
        torch.testing.assert_close(whole, split, rtol=1e-3, atol=1e-4 * float(whole.abs().max()))


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_edm_preconditioning(kind):
    """Its scheduler's steps are Euler in sigma, so ours over the same noise levels are the same picture."""
    family = of("sdxl")
    pipe, noise, cond = family.make(), family.noise(), family.cond()
    pipe.scheduler = diffusers.EDMEulerScheduler(prediction_type=kind, sigma_max=10.0)
    theirs = stock(family, pipe, cond, noise, 5, output_type="latent")
    sigmas = pipe.scheduler.sigmas.double()
    sampler = family.sampler(pipe, solver=adp.Euler(), grid=sigmas)
    with torch.no_grad():
        ours = sampler.latents(noise * (1 + sigmas[0] ** -2).sqrt(), cond)  # their start is a little wider
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-5 * float(theirs.abs().max()))


def test_flow_sigmas_of_a_scheduler_that_also_has_alphas():
    pipe = of("sana").make()
    assert hasattr(pipe.scheduler, "alphas_cumprod")
    sampler = of("sana").sampler(pipe)
    assert sampler.field.schedule == adp.RectifiedFlow(unit=1000.0)
    assert sampler.guidance_scale == 4.5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: diffusers.StableDiffusionImg2ImgPipeline, "takes no latents"),
        (lambda: diffusers.DiTPipeline, "needs class_labels"),
    ],
)
def test_pipelines_that_take_other_things_are_refused(make, message):
    with pytest.raises(adp.InputError, match=message):
        arguments_of(make())


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (lambda: diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True), "from data to noise"),
        (lambda: diffusers.EulerDiscreteScheduler(timestep_type="continuous"), "no noise schedule"),
        (lambda: diffusers.KarrasVeScheduler(), "no noise schedule"),
    ],
)
def test_schedulers_without_a_known_schedule_are_refused(scheduler, message):
    pipe = of("sd").make()
    pipe.scheduler = scheduler()
    with pytest.raises(adp.InputError, match=message):
        of("sd").sampler(pipe)


def test_a_vae_that_float16_overflows_decodes_in_float32():
    family = of("sdxl")
    pipe = family.make()
    exact = family.sampler(pipe).decode(family.noise())
    pipe.vae.half()
    sampler = family.sampler(pipe)
    latents = family.noise().requires_grad_()
    image = sampler.decode(latents)
    image.sum().backward()
    assert pipe.vae.dtype == torch.float16
    torch.testing.assert_close(image, exact, rtol=2e-3, atol=2e-3)
    assert float(latents.grad.abs().max()) > 0
