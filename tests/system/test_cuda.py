"""The same on a GPU, where there is one."""

from functools import partial

import pytest
import torch

import adjointdpm as adp
from adjointdpm.pipelines.text_device import placed
from tests.tiny.families import of
from tests.tiny.memory import sampler_of

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")


@pytest.fixture(autouse=True)
def float32_convolutions(monkeypatch):
    """By default a GPU's convolutions round their inputs to TF32's ten bits, which a CPU does not."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.mark.parametrize(
    "adjoint", [adp.Checkpointed(), adp.Checkpointed(keep=2), adp.CoarseAdjoint()], ids=repr
)
def test_gradients_on_a_gpu_are_those_of_the_cpu(adjoint):
    results = []
    for device in ("cpu", "cuda"):
        sampler = sampler_of(False, steps=5, adjoint=adjoint).to(device)
        noise = sampler.noise(1).requires_grad_()
        assert noise.device.type == device
        cond = sampler.encode("a prompt").map(partial(torch.Tensor.to, device=device, dtype=torch.float32))
        results.append(torch.autograd.grad(sampler.latents(noise, cond).square().sum(), noise)[0].cpu())
    torch.testing.assert_close(results[1], results[0], rtol=1e-3, atol=1e-4 * float(results[0].abs().max()))


def test_peak_memory_is_flat_in_the_number_of_steps():
    peaks = []
    for steps in (4, 50):
        sampler = sampler_of(False, steps=steps).to("cuda")
        noise = sampler.noise(1).requires_grad_()
        cond = sampler.encode("a prompt").map(lambda t: t.float().cuda())
        torch.cuda.reset_peak_memory_stats()
        sampler.latents(noise, cond).square().sum().backward()
        peaks.append(torch.cuda.max_memory_allocated())
    assert peaks[1] <= 1.1 * peaks[0]


@pytest.mark.parametrize("way", ["differentiable", "PipelineSampler"])
def test_model_offload_on_a_gpu(way):
    """Every module is on the CPU but the one that runs; the gradient is that of a pipeline all on the CPU."""
    pytest.importorskip("accelerate", reason="accelerate is an optional dependency")
    family, found = of("sd"), []
    for offloaded in (False, True):
        pipe, noise = family.make(), family.noise().requires_grad_()
        if offloaded:
            pipe.enable_model_cpu_offload()
        device = pipe._execution_device
        cond = family.cond().map(lambda tensor, device=device: tensor.to(device))
        if way == "differentiable":
            given = {"latents": noise.to(device), "num_inference_steps": 3, "output_type": "pt"}
            with adp.differentiable(pipe) as call:
                image = call(**cond, **given).images
        else:
            image = adp.PipelineSampler(pipe, steps=3)(noise, cond).clamp(0, 1)
        found.append(torch.autograd.grad(image.square().sum(), noise)[0])
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-4 * float(found[0].abs().max()))


@pytest.mark.parametrize("name", ["sdxl", "sd3", "flux"])
@pytest.mark.parametrize("places", [("cuda:0", "cpu"), ("cpu", "cuda:0")])
def test_text_encoders_beside_the_gpu(name, places):
    """On another device than the rest of the pipeline: the gradient of a token is that of one device."""
    torch.manual_seed(0)
    pipe, found = of(name).make(), []
    for device, text_device in (("cpu", None), places):
        placed(pipe, torch.device(device), text_device and torch.device(text_device))
        sampler = of(name).sampler(pipe, steps=2, guidance_scale=3.0)
        rows = adp.TokenRows(pipe, ["cat"])
        with rows:
            cond = sampler.encode("a red cat")
        image = sampler(sampler.noise(1), cond)
        assert image.device == torch.device(device)
        found.append([each.cpu() for each in torch.autograd.grad(image.square().sum(), rows.values)])
    for ours, truth in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-3, atol=1e-4 * float(truth.abs().max()))
