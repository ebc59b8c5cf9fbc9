"""What would lose or falsify a gradient is refused, each time with what to do instead."""

import inspect

import diffusers
import pytest
import torch

import adjointdpm as adp
from adjointdpm._types import Stats
from adjointdpm.replay import Replay
from tests.tiny_pipelines import CASES, draw, embeds, first, sd, sd_vae, text_unet


def small(**parts):
    pipe = sd(diffusers.StableDiffusionPipeline, unet=text_unet(block_out_channels=(8, 16)), **parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def arguments(**changes):
    return {
        **embeds(),
        "latents": draw(1, 4, 8, 8),
        "num_inference_steps": 2,
        "output_type": "pt",
        **changes,
    }


def image(pipe, adjoint=None, **changes):
    with adp.differentiable(pipe, adjoint) as call:
        return first(call(**arguments(**changes)))


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
        adp.differentiable(small(), adp.Continuous()),
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


class Undecorated(diffusers.StableDiffusionPipeline):
    """What people do by hand: the class without its no_grad."""

    __call__ = inspect.unwrap(diffusers.StableDiffusionPipeline.__call__)


class Detaching(Undecorated):
    """Cuts the graph on the way: the early steps' share of a gradient would be missing."""

    def __call__(self, **given):
        def cut(pipe, i, t, tensors):
            return {"latents": tensors["latents"].detach()}

        return super().__call__(**given, callback_on_step_end=cut)


class Quiet(Undecorated):
    """Switches gradients off in its body, where no decorator is."""

    def __call__(self, **given):
        with torch.no_grad():
            return super().__call__(**given)


def as_class(kind):
    pipe = small()
    pipe.__class__ = kind
    return pipe


def test_already_undecorated():
    assert torch.equal(image(as_class(Undecorated)), image(small()))


def test_a_pipeline_that_cuts_its_graph():
    with pytest.raises(adp.InputError, match="latents"):
        image(as_class(Detaching))
    with pytest.raises(adp.InputError, match="evaluation 0 of unet"):
        image(as_class(Detaching), latents=draw(1, 4, 8, 8, wanted=False))


def test_a_pipeline_that_switches_gradients_off():
    with pytest.raises(adp.InputError, match="its own code"):
        image(as_class(Quiet))


def test_an_argument_that_is_not_used():
    with pytest.raises(adp.InputError, match="negative_prompt_embeds"):
        image(small(), guidance_scale=1.0)


def test_writing_into_what_the_denoiser_was_given():
    layer, x = torch.nn.Linear(2, 2), torch.ones(1, 2)
    call = Replay("unet", layer, (x,), {}, [], [], Stats())
    assert torch.equal(call(*call.tensors), layer(x))
    x.add_(1.0)
    with pytest.raises(adp.AdjointDPMError, match="written into"):
        call(*call.tensors)


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
