"""Blocks of a network are recomputed where a budget is below half of a graph."""

import pytest
import torch

import adjointdpm as adp
from tests.tiny.memory import peak, run, sampler_of


@pytest.mark.parametrize("trained", [False, True])
def test_a_budget_below_half_a_graph_recomputes_blocks_or_says_what_is_missing(trained):
    probe = sampler_of(trained, steps=5)
    whole, graph = peak(probe), probe.stats.recomputed
    sampler = sampler_of(trained, steps=5, adjoint=adp.Checkpointed(budget=int(0.3 * graph)))
    held = peak(sampler)
    # Measured, too, without ever making a whole graph. Gradients of weights, two sets where guidance is split, weigh
    # more than the graph of this small network.
    assert trained or held < 0.6 * whole
    noise = sampler.noise(1).requires_grad_()
    cond = sampler.encode("a prompt").map(lambda t: t.float())
    leaves = [[noise, *(p for p in each.parameters() if p.requires_grad)] for each in (sampler, probe)]
    found = torch.autograd.grad(sampler.latents(noise, cond).square().sum(), leaves[0])
    exact = torch.autograd.grad(probe.latents(noise, cond).square().sum(), leaves[1])
    for ours, theirs in zip(found, exact, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5 * float(theirs.abs().max()))
    assert sampler.stats.predicted == pytest.approx(sampler.stats.bytes_saved, rel=0.1)
    assert sampler.stats.bytes_saved < 0.3 * graph
    network = sampler.model.denoiser.network
    assert not network.is_gradient_checkpointing  # the user's own switch is left alone
    with pytest.raises(adp.InputError, match=r"KiB are missing"):
        run(sampler_of(trained, steps=5, adjoint=adp.Checkpointed(budget=int(0.1 * graph))))
