"""Pipelines as samplers: the contract, noise in every step replayed, images not clamped."""

import diffusers
import pytest
import torch
from diffusers import StableDiffusionPipeline

import adjointdpm as adp
from tests.tiny.families import of
from tests.tiny.pipelines import CASES, draw, first, sd, text_unet, vp, weights
from tests.tiny.plain import plain


def small(scheduler=None):
    pipe = sd(diffusers.StableDiffusionPipeline, scheduler, text_unet(block_out_channels=(8, 16)))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def cond(batch=1, **more):
    tensors = {
        "prompt_embeds": draw(batch, 5, 8, seed=1),
        "negative_prompt_embeds": draw(batch, 5, 8, seed=2),
        "guidance_scale": torch.tensor(4.0, requires_grad=True),
    }
    return adp.Cond({**tensors, **more})


def sampler_of(pipe, steps=3, **settings):
    made = adp.PipelineSampler(pipe, steps=steps, **settings)
    made._example = adp.Cond(
        {k: v[:1] if v.ndim else v for k, v in cond().items()}
    )  # there is no tokenizer
    return made


def test_unclamped_and_otherwise_the_pipelines_image():
    pipe = small()
    sampler, given = sampler_of(pipe), cond()
    noise = sampler.noise(1, seed=4)
    image = sampler(noise, given)
    assert sampler.image_shape == tuple(image.shape[1:]) == (3, 16, 16)
    assert sampler.latent_shape == (4, 8, 8)
    assert float(image.detach().min()) < 0
    assert torch.equal(image.clamp(0, 1), plain(pipe, noise, given, 3))
    with torch.no_grad():
        assert torch.equal(sampler(noise, given), image)
    assert sampler.stats.bytes_saved == 0


@pytest.mark.parametrize(
    "kind",
    [diffusers.DDIMScheduler, diffusers.EulerAncestralDiscreteScheduler, diffusers.DDPMScheduler],
)
def test_gradients_are_plain_autograds(kind):
    pipe = small(vp(kind))
    sampler, given = sampler_of(pipe), cond()
    noise = sampler.noise(1, seed=4).requires_grad_()
    steps = sampler.step_noise(1).requires_grad_()
    leaves = [noise, *given.values(), *weights(pipe)]
    if kind is not diffusers.DDIMScheduler:
        given, leaves = given.replace(step_noise=steps), [steps, *leaves]
    latent = lambda image: image.clamp(0, 1).square().sum()  # noqa: E731
    found = torch.autograd.grad(latent(sampler(noise, given)), leaves)
    without = {k: v for k, v in given.items() if k != "step_noise"}
    truth = torch.autograd.grad(latent(plain(pipe, noise, without, 3, *steps.unbind(1))), leaves)
    assert all(float(g.abs().max()) > 0 for g in found[:5])
    assert all(torch.equal(g, exact) for g, exact in zip(found, truth, strict=True))


@pytest.mark.parametrize(
    "kind", [diffusers.EulerAncestralDiscreteScheduler, diffusers.DPMSolverSDEScheduler]
)
@pytest.mark.filterwarnings("ignore:Should have t:UserWarning")
def test_noise_within_steps_is_replayed(kind):
    sampler, given = sampler_of(small(vp(kind))), cond()
    noise = sampler.noise(1)
    before = torch.get_rng_state()
    one, same = (sampler(noise, given) for _ in range(2))
    assert torch.equal(one, same)
    assert not torch.equal(one, sampler.replace(seed=1)(noise, given))
    assert torch.equal(torch.get_rng_state(), before)


def test_noise_of_another_shape_is_never_left_out():
    """Also without a gradient, and before the shape is known: the pipeline would draw its own in its place."""
    sampler = adp.PipelineSampler(small(), steps=2)
    given = cond().map(torch.Tensor.detach)
    with torch.no_grad(), pytest.raises(adp.InputError, match=r"noise must be \(batch, 4, 8, 8\), but is"):
        sampler(torch.randn(1, 4, 8, 6), given)
    pipe, arguments = CASES["DiTPipeline"]()
    labels = {"class_labels": [*arguments["class_labels"], 0]}
    sampler = adp.PipelineSampler(pipe, steps=2, guidance_scale=1.0, arguments=labels)
    with (
        torch.no_grad(),
        pytest.raises(adp.InputError, match=r"\(2, 4, 8, 8\) .* but was given \(1, 4, 8, 8\)"),
    ):
        sampler(torch.randn(1, 4, 8, 8), adp.Cond())
    assert sampler(torch.randn(2, 4, 8, 8), adp.Cond()).shape == (2, 3, 16, 16)


@pytest.mark.parametrize("name", ["DDPMPipeline", "DDIMPipeline", "DiTPipeline", "FluxPipeline"])
def test_noise_where_a_pipeline_takes_no_latents_or_packs_them(name):
    pipe, arguments = CASES[name]()
    tensors = {k: v for k, v in arguments.items() if isinstance(v, torch.Tensor) and k != "latents"}
    known = {k: arguments[k] for k in ("class_labels", "height", "width") if k in arguments}
    sampler = adp.PipelineSampler(pipe, steps=2, guidance_scale=1.0, arguments=known)
    sampler._example = given = adp.Cond(tensors)
    noise = sampler.noise(1).requires_grad_()
    image = sampler(noise, given)
    assert tuple(image.shape[1:]) == sampler.image_shape
    found = torch.autograd.grad(image.square().sum(), noise)[0]
    exact = torch.autograd.grad(
        sampler.replace(adjoint=adp.Backprop())(noise, given).square().sum(), noise
    )[0]
    assert torch.equal(found, exact)
    # Along the gradient the image changes by its norm.
    step = 1e-3 * found / found.norm()
    with torch.no_grad():
        up, down = (sampler(noise + sign * step, given).double().square().sum() for sign in (1, -1))
    assert float((up - down) / 2e-3) == pytest.approx(float(found.norm()), rel=0.02)


def test_the_bundled_pipeline_encodes_and_compares():
    pipe = StableDiffusionPipeline.from_pretrained(adp.zoo.folder("emoji")).to(dtype=torch.float32)
    sampler = adp.PipelineSampler(pipe, steps=2, guidance_scale=4.0)
    given = sampler.encode(["a red apple", "a blue star"], "green")
    assert list(given) == ["prompt_embeds", "negative_prompt_embeds"]
    assert torch.equal(
        given["prompt_embeds"],
        adp.load_bundled("emoji").encode(["a red apple", "a blue star"])["prompt_embeds"],
    )
    assert sampler.image_shape == (3, 64, 64)
    metric = lambda image: image.mean(dim=(1, 2, 3))  # noqa: E731
    noise, given = sampler.noise(1), sampler.encode("a red apple")
    made = adp.gradients(sampler, metric, noise, given, ["noise", "guidance_scale"])
    assert made.variables["noise"].shape == noise.shape
    seen = adp.compare(
        sampler,
        metric,
        [adp.Backprop(), adp.Truncated(last=1)],
        noise=noise,
        cond=given,
        repeats=1,
        check=False,
    )
    errors = {(row.adjoint, row.variable): row.relative_error for row in seen.rows}
    assert errors["Backprop()", "noise"] == errors["Backprop()", "prompt_embeds"] == 0
    assert errors["Truncated()", "noise"] is None
    assert 0 < errors["Truncated()", "prompt_embeds"] < 10


def test_embeddings_that_are_lists_of_any_length():
    """Z-Image: padded in the Cond, cut again for the pipeline; against plain autograd on the lists."""
    family = of("z-image")
    pipe = family.make()
    sampler = adp.PipelineSampler(pipe, steps=2, guidance_scale=3.0, arguments=family.size)
    given = sampler.with_guidance(sampler.encode(["a red apple on a cat", "a pear"], "blue"))
    assert given["prompt_embeds_lengths"].tolist()[0] > given["prompt_embeds_lengths"].tolist()[1]
    noise = sampler.noise(2).requires_grad_()
    leaves = [noise, *(given.requires_grad_()[name] for name in given.differentiable)]
    found = torch.autograd.grad(sampler(noise, given).clamp(0, 1).square().sum(), leaves)
    lists = {
        name: [rows[:n] for rows, n in zip(given[name], given[f"{name}_lengths"], strict=True)]
        for name in ("prompt_embeds", "negative_prompt_embeds")
    }
    scale = {"guidance_scale": given["guidance_scale"], **family.size}
    truth = torch.autograd.grad(plain(pipe, noise, {**lists, **scale}, 2).square().sum(), leaves)
    assert all(torch.equal(g, exact) for g, exact in zip(found, truth, strict=True))
    assert not found[1][1, given["prompt_embeds_lengths"][1] :].any()  # padding


def test_pipelines_that_draw_twice_before_their_first_step():
    """An image is encoded with a draw of its own; which of the two the result starts from is not plain."""
    pipe, arguments = CASES["StableDiffusionImg2ImgPipeline"]()
    sampler = adp.PipelineSampler(pipe, arguments={"image": arguments["image"].detach()})
    sampler._example = adp.Cond(
        {k: arguments[k].detach() for k in ("prompt_embeds", "negative_prompt_embeds")}
    )
    with pytest.raises(adp.InputError, match=r"draws noise 2 times.*use differentiable"):
        sampler.noise(1)


def test_a_safety_checker_is_refused_where_a_gradient_is_wanted():
    pipe = small()
    vars(pipe)["safety_checker"] = pipe.vae
    sampler = sampler_of(pipe)
    with pytest.raises(adp.InputError, match="safety_checker = None"):
        sampler(torch.zeros(1, 4, 8, 8), cond())


def test_the_default_guidance_scale_is_the_pipelines_own():
    assert adp.PipelineSampler(small()).guidance_scale == 7.5
    assert adp.PipelineSampler(of("flux").make()).guidance_scale == 1.0


def test_a_batch_is_its_images_one_by_one():
    sampler, given = sampler_of(small()), cond()
    noise = sampler.noise(2)
    both = sampler(noise, given)
    alone = torch.cat([sampler(noise[i : i + 1], given) for i in range(2)])
    torch.testing.assert_close(both, alone, rtol=1e-4, atol=1e-5)


def test_bad_input():
    pipe = small()
    sampler, given = sampler_of(pipe), cond()
    with pytest.raises(adp.InputError, match="steps must be"):
        adp.PipelineSampler(pipe, steps=0)
    with pytest.raises(adp.InputError, match=r"refuses its arguments: .*must have the same shape"):
        sampler(sampler.noise(1), cond(prompt_embeds=draw(1, 7, 8)))
    with pytest.raises(adp.InputError, match="FlowSampler"):
        adp.PipelineSampler(pipe, adjoint=adp.CoarseAdjoint())
    with pytest.raises(TypeError, match="unexpected keyword argument 'solver'"):
        sampler.replace(solver=adp.Euler())
    with pytest.raises(adp.InputError, match=r"noise must be \(batch, 4, 8, 8\)"):
        sampler(torch.randn(1, 3, 8, 8), given)
    with pytest.raises(adp.InputError, match="float32 or float64"):
        sampler(sampler.noise(1).half(), given)
    with pytest.raises(adp.InputError, match="reads no prompts"):
        adp.PipelineSampler(CASES["DDPMPipeline"]()[0]).encode("a prompt")
    assert first([sampler.noise(1)]).shape == (1, 4, 8, 8)
