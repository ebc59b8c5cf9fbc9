"""A sampler whose graph is large beside its latents, and the most bytes that it holds at once."""

import gc

import torch

import adjointdpm as adp
from adjointdpm.flow.denoisers import Prediction
from adjointdpm.pipelines.pipeline_model import UNetDenoiser
from benchmarks.live import LiveBytes
from tests.conftest import BareModel, scaled_linear, tiny_unet


def sampler_of(trained, **settings):
    """A UNet whose graph is as large beside its latents as real ones are."""
    unet = tiny_unet(torch.float32, sample_size=8, block_out_channels=(32, 32), norm_num_groups=8)
    unet.requires_grad_(trained)
    schedule = adp.VPDiscrete(scaled_linear())
    model = BareModel(schedule, UNetDenoiser(unet, Prediction.EPS), (2, 8, 8))
    return adp.FlowSampler(model, solver=adp.DPMSolverPP(2), **settings)


def run(sampler):
    noise = sampler.noise(1).requires_grad_()
    cond = sampler.encode("a prompt").map(lambda t: t.float())
    sampler.latents(noise, cond).square().sum().backward()


def peak(sampler):
    """The most bytes alive at once in forward and backward, by following every storage."""
    run(sampler)  # gradients of the weights exist from now on
    gc.collect()
    with LiveBytes() as live:
        run(sampler)
    return live.peak
