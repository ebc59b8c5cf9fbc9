"""Inputs of a small sampler, all of them variables, and a loss of its result."""

import functools

import torch

from tests.conftest import unet_sampler


def inputs(sampler, requires_grad=True):
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(1, 2, 4, 4, dtype=torch.float64, generator=generator)
    cond = sampler.with_guidance(sampler.encode("a prompt")).requires_grad_(requires_grad)
    return noise.requires_grad_(requires_grad), cond


def loss_of(sampler, noise, cond):
    weight = torch.linspace(-1, 1, noise.numel(), dtype=torch.float64).view_as(noise)
    return (sampler.latents(noise, cond) * weight).sum()


@functools.lru_cache(maxsize=2)
def gradient(solver, prediction, adjoint, split=False):
    """Of noise, prompt, negative prompt, guidance scale and every weight."""
    sampler = unet_sampler(prediction, split, solver=solver, steps=6, adjoint=adjoint)
    noise, cond = inputs(sampler)
    leaves = [noise, *cond.values(), *sampler.parameters()]
    return torch.autograd.grad(loss_of(sampler, noise, cond), leaves), sampler
