"""Stock pipelines under `differentiable`: the pipeline's own bits, and plain autograd's."""

import inspect

import pytest
import torch

import adjointdpm as adp
from adjointdpm.pipelines.checks import tensors_of
from benchmarks.live import LiveBytes, held_by
from tests.tiny.pipelines import CASES, first, weights

# Stable Audio's decoder, as diffusers builds it.


def replayed(arguments):
    """The arguments as they were: a generator of noise starts again."""
    if "generator" in arguments:
        arguments["generator"].manual_seed(3)
    return arguments


def detached(arguments):
    return {k: v.detach() if isinstance(v, torch.Tensor) else v for k, v in replayed(arguments).items()}


def gradient(out, leaves):
    return torch.autograd.grad(first(out).square().sum(), leaves, allow_unused=True)


@pytest.mark.parametrize("name", CASES)
def test_the_pipelines_image_and_plain_autograds_gradient(name):
    pipe, arguments = CASES[name]()
    arguments["num_inference_steps"] = 3
    leaves = [*tensors_of(arguments).values(), *weights(pipe)]
    untouched = first(pipe(**detached(arguments)))
    truth = gradient(inspect.unwrap(type(pipe).__call__)(pipe, **replayed(arguments)), leaves)
    with adp.differentiable(pipe) as call:
        out = call(**replayed(arguments))
    assert torch.equal(first(out), untouched)
    found = gradient(out, leaves)
    given = len(tensors_of(arguments))
    for i, (g, exact) in enumerate(zip(found, truth, strict=True)):
        assert (g is None) == (exact is None)
        if g is not None:
            assert torch.equal(g, exact)
        if i < given:
            assert float(g.abs().max()) > 0
    assert call.stats.nfe_backward >= 3


def held(name, steps):
    pipe, arguments = CASES[name]()
    with adp.differentiable(pipe) as call:
        out = call(**arguments, num_inference_steps=steps)
    return call, out


@pytest.mark.parametrize("name", CASES)
def test_memory_does_not_grow_with_the_steps(name):
    """By the library's accounts, and by following every storage that waits for the backward pass."""
    (four, _), alive_at_four = held_by(lambda: held(name, 4))
    (sixteen, _), alive_at_sixteen = held_by(lambda: held(name, 16))
    assert sixteen.stats.nfe_forward >= 15
    assert sixteen.stats.bytes_saved <= 1.15 * four.stats.bytes_saved
    # Twelve steps more, of one graph each: with a graph kept each that would be twelve.
    assert alive_at_sixteen - alive_at_four <= 2 * four.stats.recomputed


@pytest.mark.parametrize("name", ["StableDiffusionPipeline", "StableDiffusionControlNetPipeline"])
def test_nor_does_what_is_alive(name):
    """The most bytes alive in forward and backward, by following every storage."""
    peaks = []
    for steps in (4, 16):
        with LiveBytes() as live:
            first(held(name, steps)[1]).square().sum().backward()
        peaks.append(live.peak)
    assert peaks[1] <= 1.15 * peaks[0]


@pytest.mark.parametrize("name", ["FluxPipeline", "LatentConsistencyModelPipeline"])
def test_a_scale_that_a_distilled_model_is_told(name):
    """A variable, too: against plain autograd with the scale handed straight to the network."""
    pipe, arguments = CASES[name]()
    arguments["num_inference_steps"] = 3
    scale = torch.tensor(3.5, requires_grad=True)
    with adp.differentiable(pipe) as call:
        image = first(call(**replayed({**arguments, "guidance_scale": scale})))
    found = torch.autograd.grad(image.square().sum(), scale)[0]

    def tell(network, args, kwargs):
        if name == "FluxPipeline":
            return args, {**kwargs, "guidance": scale.expand(1)}
        return args, {**kwargs, "timestep_cond": pipe.get_guidance_scale_embedding(scale[None] - 1, 8)}

    denoiser = pipe.transformer if name == "FluxPipeline" else pipe.unet
    denoiser.register_forward_pre_hook(tell, with_kwargs=True)
    plain = inspect.unwrap(type(pipe).__call__)
    told = first(plain(pipe, **replayed({**arguments, "guidance_scale": 3.5})))
    exact = torch.autograd.grad(told.square().sum(), scale)[0]
    assert torch.equal(image, told)
    torch.testing.assert_close(found, exact, rtol=1e-5, atol=0)
    assert float(exact.abs()) > 0
