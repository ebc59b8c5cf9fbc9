"""Videos and sound through `PipelineSampler`: plain autograd's bits, shapes, frames decoded alone."""

import gc

import diffusers
import peft
import pytest
import torch

import adjointdpm as adp
from tests.tiny.families import of
from tests.tiny.media import SIZES, VIDEOS, pipeline, sampler
from tests.tiny.pipelines import weights
from tests.tiny.plain import plain


def trained(pipe):
    """All weights of the first denoiser, those of a LoRA included where it takes one."""
    network = getattr(pipe, "unet", None) or pipe.transformer
    if hasattr(network, "add_adapter"):  # Stable Audio's has none
        config = peft.LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False)
        network.add_adapter(config)
    network.requires_grad_()
    return weights(pipe)


def leaves_of(made, batch=2):
    noise = made.noise(batch, seed=4).requires_grad_()
    given = made.with_guidance(made.encode(["a cat", "a red dog"][:batch], "green"))
    given = given.requires_grad_()
    return noise, given


@pytest.mark.parametrize("name", SIZES)
def test_gradients_are_plain_autograds(name):
    pipe = pipeline(name)
    made = sampler(name, pipe)
    noise, given = leaves_of(made)
    leaves = [noise, *(given[k] for k in given.differentiable), *trained(pipe)]
    out = made(noise, given)
    truth = plain(pipe, noise, {**given, **SIZES[name]}, 2)
    if made.medium == "video":  # the pipeline clamps pixels, and the sampler does not
        out = out.clamp(0, 1)
    assert torch.equal(out, truth)
    read = lambda made: (made.square() * torch.arange(made.numel()).view_as(made).cos()).sum()  # noqa: E731
    found = torch.autograd.grad(read(out), leaves, allow_unused=True)
    exact = torch.autograd.grad(read(truth), leaves, allow_unused=True)
    assert all(float(g.abs().max()) > 0 for g in found[: 1 + len(given.differentiable)])
    assert [g is None for g in found] == [g is None for g in exact]
    assert all(torch.equal(g, e) for g, e in zip(found, exact, strict=True) if g is not None)


@pytest.mark.parametrize("scale", [3.0, 1.0], ids=["guided", "unguided"])
@pytest.mark.parametrize("name", SIZES)
def test_encoded_prompts_are_what_the_pipeline_makes_of_strings(name, scale):
    pipe = pipeline(name)
    made = sampler(name, pipe, guidance_scale=scale)
    texts, noise = ["a cat", "a red dog"], made.noise(2, seed=4)
    prompts = {"prompt": texts} | ({"negative_prompt": ["green", "green"]} if scale > 1 else {})
    with torch.no_grad():
        out = made(noise, made.encode(texts, "green" if scale > 1 else None))
        truth = plain(pipe, noise, {**prompts, "guidance_scale": scale, **SIZES[name]}, 2)
    assert torch.equal(out if made.medium == "audio" else out.clamp(0, 1), truth)


@pytest.mark.parametrize(
    ("name", "medium", "rate", "shape"),
    [
        ("AnimateDiffPipeline", "video", 8.0, (3, 3, 16, 16)),
        ("WanPipeline", "video", 8.0, (5, 3, 32, 32)),
        ("LTXPipeline", "video", 25.0, (5, 3, 32, 32)),
        ("StableAudioPipeline", "audio", 4.0, (2, 12)),
    ],
)
def test_what_a_sampler_makes_is_known_before(name, medium, rate, shape):
    made = sampler(name)
    assert (made.medium, made.rate, made.output_shape) == (medium, rate, shape)
    with torch.no_grad():
        out = made(made.noise(2), made.encode("a cat"))
    assert tuple(out.shape) == (2, *shape)
    if medium == "video":
        assert made.image_shape == shape[1:]
    else:
        with pytest.raises(adp.InputError, match="makes sound"):
            _ = made.image_shape


def test_images_are_as_before():
    made = adp.PipelineSampler(of("sd").make(), steps=2)
    assert (made.medium, made.rate, made.output_shape) == ("image", None, made.image_shape)
    with pytest.raises(adp.InputError, match="makes no video, so it has no frames"):
        made(made.noise(1), made.encode("a cat"), frames=[0])
    with pytest.raises(adp.InputError, match="makes no video, so it has no frame_rate"):
        adp.PipelineSampler(of("sd").make(), frame_rate=8)


def test_the_frame_rate_is_an_argument_where_the_call_takes_one():
    """LTX's network reads it, so the video changes; Wan's does not."""
    for name, same in (("LTXPipeline", False), ("WanPipeline", True)):
        made = sampler(name)
        other = made.replace(frame_rate=10.0)
        noise, given = made.noise(1), made.encode("a cat")
        with torch.no_grad():
            assert torch.equal(made(noise, given), other(noise, given)) is same
        assert other.rate == 10.0
    with pytest.raises(adp.InputError, match="the sampler itself passes frame_rate"):
        sampler("LTXPipeline", arguments={"frame_rate": 10})
    with pytest.raises(adp.InputError, match="frame_rate must be above 0"):
        made.replace(frame_rate=0.0)


@pytest.mark.parametrize("name", VIDEOS)
def test_chosen_frames_are_those_of_the_whole_video(name):
    made, chosen = sampler(name), [2, 0]
    noise, given = leaves_of(made)
    leaves = [noise, *(given[k] for k in given.differentiable)]
    some, whole = made(noise, given, chosen), made(noise, given)
    torch.testing.assert_close(some, whole[:, chosen], rtol=1e-5, atol=1e-6)
    found = torch.autograd.grad(some.square().sum(), leaves)
    exact = torch.autograd.grad(whole[:, chosen].square().sum(), leaves)
    for g, e in zip(found, exact, strict=True):
        torch.testing.assert_close(g, e, rtol=1e-4, atol=1e-7)
    for wrong in ([], [5], [-1]):
        with pytest.raises(adp.InputError, match="numbers from 0 to"):
            made(noise, given, wrong)


@pytest.mark.parametrize(("name", "decoded"), [("AnimateDiffPipeline", 2), ("WanPipeline", None)])
def test_chosen_frames_are_decoded_alone_where_the_decoder_can(name, decoded):
    made, seen = sampler(name), []
    decoder = made.pipe.vae.decoder
    hook = decoder.conv_in.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape)))
    noise, given = made.noise(1), made.encode("a cat")
    _ = made.output_shape
    seen.clear()
    with torch.no_grad():
        made(noise, given, [1, 2])
    hook.remove()
    if decoded is None:  # over time: both latent frames, one after the other
        assert len(seen) == 2
    else:
        assert [shape[0] for shape in seen] == [decoded]


def test_decoding_fewer_frames_holds_fewer_bytes():
    made = sampler("AnimateDiffPipeline")
    noise, given = made.noise(1).requires_grad_(), made.encode("a cat")
    made(noise, given).sum().backward()
    whole = made.stats.decoder
    made(noise, given, [1]).sum().backward()
    assert made.stats.decoder < 0.5 * whole


def test_no_run_is_kept_alive():
    """A reference cycle would hold a run's proxy, and its graphs, until the next collection."""
    made = sampler("AnimateDiffPipeline")
    noise, given = made.noise(1).requires_grad_(), made.encode("a cat")
    _ = made.output_shape
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            made(noise, given, [1])
        alive = [each for each in gc.get_objects() if type(each).__name__ == "AnimateDiffPipeline"]
    finally:
        gc.enable()
    assert alive == [made.pipe]


def test_noise_within_the_decoder_is_recomputed_the_same():
    """LTX's decoder may inject noise; the backward pass of its blocks must see the same."""
    pipe = pipeline("LTXPipeline")
    vae = type(pipe.vae).from_config({**pipe.vae.config, "decoder_inject_noise": (True,) * 5})
    vae.use_framewise_decoding = False
    scales = [each for name, each in vae.decoder.named_parameters() if "per_channel_scale" in name]
    assert scales
    for each in scales:
        torch.nn.init.constant_(each, 0.3)
    pipe.register_modules(vae=vae.requires_grad_(False).eval())
    made = sampler("LTXPipeline", pipe)
    noise, given = made.noise(1).requires_grad_(), made.encode("a cat")
    found = torch.autograd.grad(made(noise, given).square().sum(), noise)[0]
    exact = torch.autograd.grad(made.replace(adjoint=adp.Backprop())(noise, given).square().sum(), noise)[0]
    assert torch.equal(found, exact)


@pytest.mark.filterwarnings("ignore:Should have t:UserWarning")
def test_sound_with_the_schedulers_own_noise():
    """The published scheduler solves an SDE; the same seed is the same waveform."""
    pipe = pipeline("StableAudioPipeline")
    pipe.scheduler = diffusers.CosineDPMSolverMultistepScheduler(sigma_max=80.0)
    made = sampler("StableAudioPipeline", pipe)
    noise, given = leaves_of(made, 1)
    one, same = made(noise, given), made(noise, given)
    assert torch.equal(one, same)
    assert not torch.equal(one, made.replace(seed=1)(noise, given))
    found = torch.autograd.grad(one.square().sum(), noise)[0]
    exact = torch.autograd.grad(made.replace(adjoint=adp.Backprop())(noise, given).square().sum(), noise)[0]
    assert torch.equal(found, exact)
