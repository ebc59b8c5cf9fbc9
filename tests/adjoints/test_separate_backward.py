"""Adjoints with a backward pass of their own sample what Backprop samples, and write to no `.grad` themselves."""

import pytest
import torch

import adjointdpm as adp
from tests.conftest import unet_sampler
from tests.tiny.gradients import inputs, loss_of

ADJOINTS = [
    adp.CoarseAdjoint(),
    adp.CoarseAdjoint(steps=2),
    adp.Continuous(),
    adp.Continuous(trajectory="resolved"),
]


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=repr)
def test_the_sample_has_the_bits_of_backprop(adjoint):
    found = []
    for each in (adp.Backprop(), adjoint):
        sampler = unet_sampler(steps=5, solver=adp.Euler(), adjoint=each)
        noise, cond = inputs(sampler)
        found.append(sampler.latents(noise, cond))
    assert torch.equal(*found)


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=repr)
def test_the_states_held_are_those_that_the_trajectory_says(adjoint):
    held = []
    for steps in (5, 10):
        sampler = unet_sampler(steps=steps, solver=adp.Euler(), adjoint=adjoint)
        noise, cond = inputs(sampler)
        sampler.latents(noise, cond)
        held.append((sampler.stats.states - noise.nbytes) / noise.nbytes)  # besides the final state
    if not adjoint.stored:
        assert held == [1, 1]
    else:
        assert held[1] - held[0] in (5, 10)  # a state for each further step, and a slope where it is needed


def test_grad_returns_and_leaves_no_grad_behind():
    sampler = unet_sampler(steps=3, solver=adp.Euler(), adjoint=adp.CoarseAdjoint())
    noise, cond = inputs(sampler)
    torch.autograd.grad(loss_of(sampler, noise, cond), noise)
    assert noise.grad is None
    assert all(weight.grad is None for weight in sampler.parameters())
