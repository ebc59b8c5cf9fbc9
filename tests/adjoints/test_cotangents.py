"""The cotangents of the states: their norms, and the step at which one is not finite."""

import pytest
import torch

import adjointdpm as adp
from adjointdpm.flow.denoisers import GaussianMixture
from tests.tiny.mixtures import gradient, mixture


def test_a_gradient_that_overflows_is_named_with_its_step():
    """A float16 product overflows in the backward pass alone: the states are finite."""
    sampler = mixture(adp.VPLinear(), solver=adp.Euler(), steps=8)
    at = float(sampler._time_grid[3].t)

    class Breaks(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            return g * float("inf")

    class Overflows(GaussianMixture):
        def forward(self, x, t, cond):
            return super().forward(Breaks.apply(x) if float(t) == at else x, t, cond)

    sampler.model.denoiser.__class__ = Overflows
    for adjoint in (adp.Backprop(), adp.Checkpointed(), adp.CoarseAdjoint(), adp.Continuous()):
        with pytest.raises(adp.NonFiniteError, match=r"at step 3 of 8"):
            gradient(sampler.replace(adjoint=adjoint))


def test_the_trace_is_the_gradient_of_each_state():
    """The exact adjoints record the same norms; the first is that of the end, the last that of the start."""
    traces = []
    for adjoint in (adp.Backprop(), adp.Checkpointed(), adp.CoarseAdjoint()):
        sampler = mixture(adp.VPLinear(), solver=adp.DPMSolverPP(2), steps=5, adjoint=adjoint)
        noise_gradient = gradient(sampler)[0]
        traces.append(sampler.stats.trace)
    grid = sampler._time_grid
    assert [t for t, _ in traces[0]] == [float(grid[i].t) for i in (5, 4, 3, 2, 1, 0)]
    for trace in traces[1:]:
        assert [norm for _, norm in trace] == pytest.approx([norm for _, norm in traces[0]], rel=1e-12)
    scale = float(grid.schedule.prior_std(grid[0].t) / grid[0].scale)
    assert traces[0][-1][1] * scale == pytest.approx(float(noise_gradient.norm()), rel=1e-12)
