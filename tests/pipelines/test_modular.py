"""Modular Diffusers through the same context manager: SDXL."""

import diffusers
import pytest
import torch

import adjointdpm as adp
from tests.tiny.pipelines import CASES, draw, weights

modular = pytest.importorskip(
    "diffusers.modular_pipelines", reason="this version of diffusers has no modular pipelines"
)


def tiny():
    stock, given = CASES["StableDiffusionXLPipeline"]()
    blocks = modular.SequentialPipelineBlocks.from_blocks_dict(
        {
            name: block
            for name, block in diffusers.StableDiffusionXLAutoBlocks().sub_blocks.items()
            if name in ("denoise", "decode")
        }
    )
    pipe = modular.StableDiffusionXLModularPipeline(blocks=blocks)
    pipe.update_components(unet=stock.unet, vae=stock.vae, scheduler=stock.scheduler)
    pipe.set_progress_bar_config(disable=True)
    del given["guidance_scale"]
    return stock, pipe, {**given, "num_inference_steps": 3, "height": 16, "width": 16}


def test_modular_sdxl():
    stock, pipe, given = tiny()
    tensors = [v for v in given.values() if isinstance(v, torch.Tensor)]
    leaves = [*tensors, *weights(stock)]
    with torch.no_grad():
        untouched = pipe(**given, output="images")
    assert not untouched.requires_grad
    grads = []
    for adjoint in (adp.Backprop(), adp.Checkpointed()):
        with adp.differentiable(pipe, adjoint) as call:
            image = call(**given, output="images")
        assert torch.equal(image, untouched)
        grads.append(torch.autograd.grad(image.square().sum(), leaves))
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
    # The same model in a stock pipeline, which sends both halves of guidance in one batch.
    with adp.differentiable(stock) as call:
        image = call(**given, guidance_scale=7.5).images
    truth = torch.autograd.grad(image.square().sum(), leaves)
    for found, exact in zip(grads[1], truth, strict=True):
        torch.testing.assert_close(found, exact, rtol=1e-3, atol=1e-4 * float(exact.abs().max()))
    assert call.stats.nfe_forward == 6


def test_gradients_stay_off_without_us():
    _, pipe, given = tiny()
    assert not pipe(**given, output="images").requires_grad
    assert draw(1).requires_grad
