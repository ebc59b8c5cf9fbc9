"""Text encoders on a device of their own: the same images and gradients, and the pipeline's device is the rest's."""

from functools import partial

import pytest
import torch
from torch import nn

import adjointdpm as adp
from adjointdpm.pipelines.gradient_proxy import plain_copy
from adjointdpm.pipelines.text_device import encoders_apart, own_device, placed
from tests.tiny.calls import arguments
from tests.tiny.families import of
from tests.tiny.second_device import opened, text_there

CPU, META = torch.device("cpu"), torch.device("meta")


@pytest.fixture
def there(monkeypatch):
    return opened(monkeypatch)


def double(name):
    torch.manual_seed(0)
    pipe = of(name).make().to(torch.float64)
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            part.requires_grad_(False)
    return pipe


def flow(name, pipe):
    return of(name).sampler(pipe, steps=2, guidance_scale=3.0)


def stock(name, pipe):
    return adp.PipelineSampler(pipe, steps=2, guidance_scale=3.0, arguments=of(name).size)


def check_close(found, truth, tolerance):
    for ours, theirs in zip(found, truth, strict=True):
        assert ours.device == theirs.device
        assert float((ours - theirs).detach().norm()) <= tolerance * float(theirs.detach().norm())


@pytest.mark.parametrize(
    ("name", "made", "tolerance"),
    [
        ("sd", flow, 1e-12),
        ("sdxl", flow, 1e-12),
        ("sdxl", stock, 1e-12),
        # T5, Gemma and Qwen compute a softmax, norms or angles in float32.
        ("sd3", flow, 1e-6),
        ("sd3", stock, 1e-6),
        ("flux", flow, 1e-6),
        ("pixart", flow, 1e-6),
        ("sana", flow, 1e-4),
        ("z-image", flow, 1e-6),
        ("qwen", flow, 1e-6),
    ],
)
def test_image_and_gradients_of_noise_and_token_are_those_of_one_device(there, name, made, tolerance):
    pipe, results = double(name), []
    for move in (lambda pipe: pipe, partial(text_there, there=there)):
        sampler = made(name, move(pipe))
        rows = adp.TokenRows(pipe, ["cat"])
        with rows:
            cond = sampler.encode("a red cat")
        noise = sampler.noise(1).requires_grad_()
        image = sampler(noise, cond)
        results.append([image, *torch.autograd.grad(image.square().sum(), [noise, *rows.values])])
    assert encoders_apart(pipe)
    assert all(bool(each.any()) for each in results[0])
    check_close(results[1], results[0], tolerance)


def test_the_pipelines_own_call_reads_a_prompt_on_two_devices(there):
    pipe, noise, results = double("sd3"), of("sd3").noise().double().requires_grad_(), []
    for move in (lambda pipe: pipe, partial(text_there, there=there)):
        move(pipe)
        call = adp.differentiable(pipe)
        image = call("a red cat", latents=noise, num_inference_steps=2, output_type="pt").images
        results.append([image, *torch.autograd.grad(image.square().sum(), noise)])
    check_close(results[1], results[0], 1e-6)


def test_the_encoders_weights_have_the_gradient_of_autograd(there):
    """Of the encoding alone, against the encoder called by hand where it is whole."""
    pipe = double("sd")
    encoder, direction = pipe.text_encoder.requires_grad_(), torch.randn(1, 6, 8, dtype=torch.float64)
    ids = pipe.tokenizer("a red cat", padding="max_length", return_tensors="pt").input_ids
    truth = torch.autograd.grad((encoder(ids)[0] * direction).sum(), list(encoder.parameters()))
    text_there(pipe, there)
    rows = flow("sd", pipe).encode("a red cat", graph=True)["prompt_embeds"]
    assert rows.device == CPU
    found = torch.autograd.grad((rows * direction).sum(), list(encoder.parameters()))
    assert {each.device for each in found} == {there}
    flat = [torch.cat([each.cpu().flatten() for each in every]) for every in (found, truth)]
    check_close(flat[:1], flat[1:], 1e-12)


def test_the_pipelines_device_is_that_of_the_rest(there):
    pipe = text_there(of("sd").make(), there)
    assert own_device(pipe) == CPU
    assert plain_copy(pipe)._execution_device == plain_copy(pipe).device == CPU
    assert (
        pipe._execution_device == there
    )  # diffusers' own answer, for which noise and denoiser would not fit
    assert list(encoders_apart(pipe)) == ["text_encoder"]
    pipe.text_encoder.to(CPU)
    assert not encoders_apart(pipe)


def test_encoders_with_hooks_of_offloading_are_left_to_them(there):
    hooks = pytest.importorskip("accelerate.hooks", reason="accelerate is an optional dependency")
    pipe = of("sd").make()
    hooks.add_hook_to_module(pipe.text_encoder, hooks.AlignDevicesHook(execution_device=there))
    pipe.text_encoder.to(there)
    assert not encoders_apart(pipe)
    assert plain_copy(pipe)._execution_device == pipe._execution_device == there


def test_embeddings_need_no_encoder():
    """On the meta device it has no weights to compute with; the gradient is the same to the last bit."""
    pipe, given, results = of("sd").make(), arguments(), []
    for move in (lambda pipe: pipe, lambda pipe: placed(pipe, CPU, META)):
        call = adp.differentiable(move(pipe))
        image = call(**given).images
        leaves = [each for each in given.values() if isinstance(each, torch.Tensor) and each.requires_grad]
        results.append([image, *torch.autograd.grad(image.square().sum(), leaves)])
    assert all(weight.is_meta for weight in pipe.text_encoder.parameters())
    assert own_device(pipe) == CPU
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_placing_moves_each_part_once(there):
    pipe = of("sd3").make()
    assert placed(pipe, CPU, there) is pipe
    places = {
        name: {weight.device for weight in part.parameters()}
        for name, part in pipe.components.items()
        if isinstance(part, nn.Module)
    }
    assert {name for name, found in places.items() if found == {there}} == {
        "text_encoder",
        "text_encoder_2",
        "text_encoder_3",
    }
    assert {name for name, found in places.items() if found == {CPU}} == {"transformer", "vae"}
    assert not encoders_apart(placed(pipe, CPU, None))


def test_a_device_for_no_text_encoder_raises():
    with pytest.raises(adp.InputError, match="DDPMPipeline has no text encoder to be put on meta; leave"):
        placed(of("ddpm").make(), CPU, META)
