"""Calls are counted where they are made, and a repeated call must give what it gave."""

import pytest
import torch

import adjointdpm as adp
from adjointdpm._types import GraphPolicy, direct
from adjointdpm.adjoints.call_accounting import CallAccounting
from adjointdpm.adjoints.recompute import recomputed, without_graph


def layer(x):
    return torch.sin(x) * x  # saves sin(x), x and x again: two storages of its size


@pytest.mark.parametrize("policy", list(GraphPolicy))
def test_calls_and_bytes_are_those_of_the_policy(policy):
    stats, x = adp.Stats(), torch.randn(1, 100, dtype=torch.float64, requires_grad=True)
    accounting = CallAccounting(stats, [])
    runs = {
        GraphPolicy.KEEP: direct,
        GraphPolicy.RECOMPUTE: recomputed,
        GraphPolicy.NO_GRAPH: without_graph,
    }
    z = x
    for _ in range(3):
        accounting.begin(policy)
        z = accounting.execute(runs[policy], layer, z)
    assert (accounting.call, stats.nfe_forward, stats.nfe_backward) == (3, 3, 0)
    if policy is GraphPolicy.NO_GRAPH:
        assert not z.requires_grad
        assert (stats.kept, stats.recomputed, stats.states) == (0, 0, 0)
        return
    z.sum().backward()
    assert stats.nfe_backward == 3
    assert stats.nfe_forward == (3 if policy is GraphPolicy.KEEP else 6)
    graph = 2 * x.nbytes
    if policy is GraphPolicy.KEEP:
        assert (stats.kept, stats.recomputed) == (3 * graph, 0)
    else:
        assert (stats.kept, stats.recomputed, stats.states) == (0, graph, 3 * x.nbytes)


def test_a_call_that_counts_is_refused_when_it_is_repeated():
    calls = []

    def counting(x):
        calls.append(1)
        return torch.sin(x) * len(calls)

    x = torch.ones(4, requires_grad=True)
    accounting = CallAccounting(adp.Stats(), [])
    accounting.begin(GraphPolicy.RECOMPUTE)
    out = accounting.execute(recomputed, counting, x)
    with pytest.raises(adp.RecomputationError, match="denoiser call 0 was recomputed"):
        out.sum().backward()
