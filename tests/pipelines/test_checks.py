"""What would lose or falsify a gradient is refused, each time with what to do instead."""

import warnings

import diffusers
import pytest
import torch

import adjointdpm as adp
from adjointdpm.pipelines.checks import UnusedRowsWarning, WeightsWarning
from tests.tiny.calls import Undecorated, arguments, as_class, image, small
from tests.tiny.families import of
from tests.tiny.pipelines import CASES, draw, embeds, first, sd_vae


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_gradients_switched_off(off):
    with off(), pytest.raises(adp.InputError, match="switched off here"):
        image(small())


def test_nothing_to_differentiate():
    pipe = small()
    pipe.unet.requires_grad_(False)
    pipe.vae.requires_grad_(False)
    given = {k: v.detach() if isinstance(v, torch.Tensor) else v for k, v in arguments().items()}
    with pytest.raises(adp.InputError, match="requires_grad_"), adp.differentiable(pipe) as call:
        call(**given)


@pytest.mark.parametrize("kind", ["pil", "np", None])
def test_outputs_that_are_not_tensors(kind):
    given = arguments(output_type=kind) if kind else arguments()
    if kind is None:
        del given["output_type"]
    with pytest.raises(adp.InputError, match='output_type="pt"'), adp.differentiable(small()) as call:
        call(**given)


def test_safety_checker_and_watermark():
    pipe = small()
    vars(pipe)["safety_checker"] = sd_vae()
    with pytest.raises(adp.InputError, match="safety_checker = None"):
        image(pipe)
    assert image(pipe, output_type="latent").requires_grad
    vars(pipe)["safety_checker"] = None
    pipe.watermark = object()
    with pytest.raises(adp.InputError, match="watermark = None"):
        image(pipe)


def test_clamped_pixels_are_reported():
    pipe = small()
    with adp.differentiable(pipe) as call:
        out = first(call(**arguments()))
    cut = float(((out == 0) | (out == 1)).float().mean())
    assert 0 < cut < 1
    assert call.stats.clamped == pytest.approx(cut)


def test_continuous_is_refused():
    with (
        pytest.raises(adp.InputError, match="FlowSampler"),
        adp.differentiable(small(), adp.CoarseAdjoint()),
    ):
        pass


def test_truncated_has_no_gradient_for_noise_but_for_prompts():
    pipe = small()
    with pytest.raises(adp.InputError, match="first of 2 steps"):
        image(pipe, adp.Truncated(last=1))
    given = arguments(latents=draw(1, 4, 8, 8, wanted=False))
    grads = []
    for adjoint in (adp.Truncated(last=2), adp.Truncated(last=1), adp.Checkpointed()):
        with adp.differentiable(pipe, adjoint) as call:
            out = first(call(**given))
        grads.append(torch.autograd.grad(out.sum(), given["prompt_embeds"])[0])
    assert torch.equal(grads[0], grads[2])
    assert not torch.equal(grads[1], grads[2])


def test_a_cache_hook():
    pipe, given = CASES["FluxPipeline"]()
    pipe.transformer.enable_cache(diffusers.FirstBlockCacheConfig(threshold=0.1))
    with (
        pytest.raises(adp.InputError, match="disable_cache"),
        adp.differentiable(pipe, adp.Backprop()) as call,
    ):
        call(**given, num_inference_steps=2)


def test_mixed_dtypes():
    """States of another dtype than the weights are a choice; a network of two dtypes is a mistake."""
    noise = draw(1, 4, 8, 8)
    double = noise.detach().double().requires_grad_()
    found = [torch.autograd.grad(image(small(), latents=each).sum(), each)[0] for each in (noise, double)]
    assert found[1].dtype == torch.float64
    torch.testing.assert_close(found[1].float(), found[0], rtol=1e-3, atol=1e-5)
    pipe = small()
    pipe.unet.conv_in.double()
    with pytest.raises(adp.InputError, match=r"dtypes do not fit .*one dtype"):
        image(pipe)


def test_a_vae_that_is_cast_there_and_back():
    pipe, given = CASES["StableDiffusionXLPipeline"]()
    pipe.vae = sd_vae(force_upcast=True).half()
    with pytest.raises(adp.InputError, match=r"pipe\.vae\.to"), adp.differentiable(pipe) as call:
        call(**given, num_inference_steps=2)


def test_nan_names_its_step():
    pipe = small()
    with torch.no_grad():
        pipe.unet.conv_out.bias.fill_(float("nan"))
    with pytest.raises(adp.NonFiniteError, match="step 0 of 2"):
        image(pipe)


class Detaching(Undecorated):
    """Cuts the graph on the way: the early steps' share of a gradient would be missing."""

    def __call__(self, **given):
        def cut(pipe, i, t, tensors):
            return {"latents": tensors["latents"].detach()}

        return super().__call__(**given, callback_on_step_end=cut)


def test_a_pipeline_that_cuts_its_graph():
    with pytest.raises(adp.InputError, match="latents"):
        image(as_class(Detaching))
    with pytest.raises(adp.InputError, match="evaluation 0 of unet"):
        image(as_class(Detaching), latents=draw(1, 4, 8, 8, wanted=False))


def test_an_argument_that_is_not_used():
    with pytest.raises(adp.InputError, match="negative_prompt_embeds"):
        image(small(), guidance_scale=1.0)


def test_attention_processors_swapped_back_after_the_call():
    """As perturbed-attention guidance does: the recomputation must use those of the call."""
    pipe, given = small(), arguments()
    plain = pipe.unet.attn_processors
    attentions = [m for m in pipe.unet.modules() if hasattr(m, "set_processor")]

    class Doubled:
        def __call__(self, attn, hidden_states, **others):
            return 2 * diffusers.models.attention_processor.AttnProcessor()(attn, hidden_states, **others)

    def run(adjoint):
        pipe.unet.set_attn_processor(Doubled())
        with adp.differentiable(pipe, adjoint) as call:
            out = first(call(**given))
        pipe.unet.set_attn_processor(dict(plain))
        return torch.autograd.grad(out.sum(), given["latents"])[0]

    assert attentions
    assert torch.equal(run(adp.Checkpointed()), run(adp.Backprop()))
    assert pipe.unet.attn_processors == plain


def rows_of(way, rows, mask=None, length=4):
    """Gradients of Qwen-Image's embeddings, of which its pipeline takes so many rows, by one of the ways in."""
    family = of("qwen")
    pipe, cond = family.make(), family.cond(2, guided=False)
    generator = torch.Generator().manual_seed(1)
    embeds = torch.randn(2, rows, 8, generator=generator).requires_grad_()
    mask = torch.ones(2, rows, dtype=torch.long) if mask is None else mask
    cond = cond.replace(prompt_embeds=embeds, prompt_embeds_mask=mask)
    if way == "differentiable":
        with adp.differentiable(pipe) as call:
            given = {**family.arguments(cond), "max_sequence_length": length, "latents": family.noise(2)}
            out = first(call(**given, num_inference_steps=2, output_type="pt"))
    elif way == "PipelineSampler":
        arguments = {**family.size, "max_sequence_length": length}
        sampler = adp.PipelineSampler(pipe, steps=2, guidance_scale=1.0, arguments=arguments)
        sampler._example = cond.map(lambda t: t[:1].detach())
        out = sampler(sampler.noise(2), cond)
    else:
        out = family.sampler(pipe, steps=2, guidance_scale=1.0)(family.noise(2), cond)
    out[
        1:
    ].square().sum().backward()  # a loss of one image, where the other's rows have no influence by rights
    return embeds.grad


@pytest.mark.parametrize(
    ("way", "rows", "named"),
    [
        ("differentiable", 6, "rows 4 to 5 of prompt_embeds"),
        ("PipelineSampler", 6, "rows 4 to 5 of prompt_embeds"),
        ("FlowSampler", 513, "rows 512 of prompt_embeds"),
    ],
)
def test_rows_that_a_pipeline_cuts_off_are_named(way, rows, named):
    with pytest.warns(UnusedRowsWarning, match=named):
        found = rows_of(way, rows)
    assert not bool(found[1, 512 if way == "FlowSampler" else 4 :].any())


@pytest.mark.parametrize("way", ["differentiable", "PipelineSampler", "FlowSampler"])
def test_rows_that_a_mask_turns_off_are_not(way):
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    found = rows_of(way, 4, mask)  # warnings are errors here
    assert bool(found[1, :2].any())
    assert not bool(found[1, 2:].any())


def said_by(pipe, way, given):
    with warnings.catch_warnings(record=True) as message:
        warnings.simplefilter("always")
        if way == "differentiable":
            with adp.differentiable(pipe) as call:
                call(**{**arguments(), **given})
        else:
            cond = adp.Cond({**embeds(), **{k: v for k, v in given.items() if k != "latents"}})
            noise = given.get("latents", draw(1, 4, 8, 8))
            make = adp.FlowSampler.from_pipeline if way == "FlowSampler" else adp.PipelineSampler
            make(pipe, steps=2)(noise, cond)
    return [str(each.message) for each in message if issubclass(each.category, WeightsWarning)]


@pytest.mark.parametrize("way", ["differentiable", "PipelineSampler", "FlowSampler"])
def test_weights_that_all_require_gradients_are_reported_once(way):
    pipe = small()
    count = sum(w.numel() for part in (pipe.unet, pipe.vae) for w in part.parameters())
    (message,) = said_by(pipe, way, {})
    assert f"({count:,} of them)" in message
    assert "pipe.vae.requires_grad_(False); pipe.unet.requires_grad_(False)" in message
    assert said_by(pipe, way, {}) == []
    trained = small()
    trained.vae.requires_grad_(False)
    assert said_by(trained, way, {}) == []
    plain = {k: v.detach() for k, v in arguments().items() if isinstance(v, torch.Tensor)}
    assert said_by(small(), way, plain) == []  # of the weights alone: they are what is trained
