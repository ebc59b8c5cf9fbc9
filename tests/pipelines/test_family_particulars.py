"""What is particular to a family, and what none of them can do."""

import diffusers
import pytest
import torch

import adjointdpm as adp
from tests.pipelines.test_families import stock
from tests.tiny.families import of
from tests.tiny.pipelines import CASES


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
    prompts = ["a red apple on a cat", "a pear"]
    cond = family.sampler(pipe, guidance_scale=2.0).encode(prompts, "blue")
    rows, negative = pipe.encode_prompt(list(prompts), negative_prompt=["blue", "blue"])
    lengths = cond["prompt_embeds_lengths"].tolist()
    assert lengths == [len(each) for each in rows]
    assert lengths[0] > lengths[1]
    assert torch.equal(cond["prompt_embeds"][1, : lengths[1]], rows[1])
    assert torch.equal(cond["negative_prompt_embeds"][0], negative[0])
    assert not cond["prompt_embeds"][1, lengths[1] :].any()


@pytest.mark.parametrize("name", ["sd", "flux", "qwen", "z-image"])
def test_guidance_that_the_pipeline_would_ignore(name):
    """Its gradient would be missing, and the negative prompt's, without a word."""
    family = of(name)
    off = 0.0 if name == "z-image" else 1.0
    cond = family.cond().replace(**{family.guidance[0]: torch.tensor(off)})
    with pytest.raises(adp.InputError, match="would ignore"):
        family.sampler(steps=1)(family.noise(), cond)


def test_the_scale_that_a_distilled_model_is_told():
    """A variable, too: against plain autograd with the scale handed straight to the network."""
    family = of("flux")
    pipe, cond, noise = family.make(), family.cond(), family.noise()
    sampler, scale = family.sampler(pipe, steps=2), torch.tensor(2.0, requires_grad=True)
    image = sampler(noise, cond.replace(guidance_scale=scale))
    found = torch.autograd.grad(image.square().sum(), scale)[0]
    assert not torch.equal(image, sampler(noise, cond))

    def tell(network, args, kwargs):
        return args, {**kwargs, "guidance": scale.expand(len(kwargs["hidden_states"]))}

    pipe.transformer.register_forward_pre_hook(tell, with_kwargs=True)
    told = sampler.replace(adjoint=adp.Backprop())(noise, cond)
    exact = torch.autograd.grad(told.square().sum(), scale)[0]
    assert torch.equal(told, image)
    torch.testing.assert_close(found, exact, rtol=1e-5, atol=0)
    assert float(exact.abs()) > 0


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
        torch.testing.assert_close(whole, split, rtol=1e-3, atol=1e-4 * float(whole.detach().abs().max()))


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_edm_preconditioning(kind):
    """Its scheduler's steps are Euler in sigma, so ours over the same noise levels are the same image."""
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
    assert sampler.model.schedule == adp.RectifiedFlow(unit=1000.0)
    assert sampler.guidance_scale == 4.5


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("StableDiffusionImg2ImgPipeline", "takes no latents"),
        ("DiTPipeline", "needs class_labels"),
        ("WanPipeline", "makes video, which FlowSampler"),
    ],
)
def test_pipelines_that_take_other_things_are_refused(name, message):
    with pytest.raises(adp.InputError, match=message):
        adp.FlowSampler.from_pipeline(CASES[name]()[0])


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (lambda: diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True), "from data to noise"),
        (
            lambda: diffusers.EulerDiscreteScheduler(timestep_type="continuous"),
            "the noise schedule of .* is unknown",
        ),
        (lambda: diffusers.KarrasVeScheduler(), "the noise schedule of .* is unknown"),
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


@pytest.mark.parametrize("prompts", [["a cat"], ["a cat", "a dog"], ["a cat", "dog"]], ids=len)
def test_prompts_of_one_length_have_no_mask(prompts):
    """Qwen-Image leaves it out where all of it is on; decoding does not ask for one then."""
    family = of("qwen")
    pipe = family.make()
    sampler, noise = family.sampler(pipe, steps=2, guidance_scale=1.0), family.noise(len(prompts))
    cond = sampler.encode(prompts)
    assert ("prompt_embeds_mask" in cond) == (len({len(each.split()) for each in prompts}) > 1)
    image = sampler(noise, cond)
    mask = torch.ones(cond["prompt_embeds"].shape[:2], dtype=torch.long)
    assert torch.equal(
        image, sampler(noise, cond.replace(prompt_embeds_mask=cond.get("prompt_embeds_mask", mask)))
    )


def test_what_decoding_would_refuse_is_refused_before_the_sampling():
    family = of("sd3")
    pipe, calls = family.make(), []
    sampler = family.sampler(pipe, steps=2)
    pipe.transformer.register_forward_pre_hook(lambda *_: calls.append(1))
    pipe.vae.register_to_config(scaling_factor=torch.ones(3))
    with pytest.raises(adp.InputError, match="shapes do not fit"):
        sampler(family.noise(), family.cond())
    assert not calls


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("pixart", {"prompt_attention_mask": torch.zeros(1, 5, dtype=torch.long)}, "leaves no token"),
        ("z-image", {"prompt_embeds_lengths": torch.tensor([0])}, "leaves no token"),
        ("qwen", {"prompt_embeds_mask": torch.ones(1, 3, dtype=torch.long)}, "shapes do not fit"),
        ("sd", {"guidance_scale": torch.tensor([3.0])}, "one number for the whole batch"),
        ("sd", {"guidance_scale": torch.tensor(float("nan"))}, "NaN or infinity"),
        (
            "sd",
            {"prompt_embeds": torch.zeros(1, 9, 8)},
            "refuses its arguments: .*must have the same shape",
        ),
        ("sdxl", {"prompt_embeds": torch.zeros(1, 6, 17)}, "refuses its arguments"),
        ("sd3", {"pooled_prompt_embeds": torch.zeros(1, 17)}, "shapes do not fit|refuses its arguments"),
    ],
)
def test_a_conditioning_that_does_not_fit(name, changes, message):
    family = of(name)
    with pytest.raises(adp.InputError, match=message):
        family.sampler(steps=1)(family.noise(), family.cond().replace(**changes))
