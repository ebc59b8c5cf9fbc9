"""A budget of bytes keeps as many graphs as fit, and splits guidance below one."""

import itertools

import pytest
import torch

import adjointdpm as adp
from adjointdpm.pipelines.pipeline_model import UNetDenoiser
from tests.tiny.memory import peak, run, sampler_of


def test_budget_keeps_as_many_graphs_as_fit():
    probe = sampler_of(False, steps=8)
    run(probe)
    graph, states = probe.stats.recomputed, 8 * probe.noise(1).nbytes
    seen = []
    for graphs in (1.5, 3.5, 99):
        budget = states + int(graphs * graph)
        sampler = sampler_of(False, steps=8, adjoint=adp.Checkpointed(budget=budget))
        held = peak(sampler)
        kept = min(int(graphs), 7)
        assert sampler.stats.nfe_forward == 16 - kept
        assert sampler.stats.kept == kept * graph
        assert sampler.stats.predicted <= budget
        assert sampler.stats.predicted == pytest.approx(sampler.stats.bytes_saved, rel=0.1)
        seen.append((sampler.stats.predicted, held))
    # Counted by following every storage: what it holds besides is one call's temporaries, whatever is kept.
    for (planned, held), (planned_more, held_more) in itertools.pairwise(seen):
        assert held_more - held == pytest.approx(planned_more - planned, rel=0.02)


def test_a_budget_below_one_graph_splits_guidance_or_says_what_is_missing():
    probe = sampler_of(False, steps=3)
    run(probe)
    graph = probe.stats.recomputed
    sampler = sampler_of(False, steps=3, adjoint=adp.Checkpointed(budget=int(0.7 * graph)))
    noise = sampler.noise(1).requires_grad_()
    cond = sampler.encode("a prompt").map(lambda t: t.float())
    (found,) = torch.autograd.grad(sampler.latents(noise, cond).square().sum(), noise)
    (exact,) = torch.autograd.grad(probe.latents(noise, cond).square().sum(), noise)
    torch.testing.assert_close(found, exact, rtol=1e-3, atol=1e-5 * float(exact.abs().max()))
    assert sampler.stats.predicted == pytest.approx(sampler.stats.bytes_saved, rel=0.1)
    assert sampler.stats.bytes_saved < 0.7 * graph
    assert isinstance(sampler.model.denoiser, UNetDenoiser)  # the user's own is left alone
