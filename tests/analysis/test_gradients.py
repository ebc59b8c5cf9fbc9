"""The gradient of a metric is that of plain autograd through the same sampler."""

import pytest
import torch

import adjointdpm as adp
from tests.tiny.tasks import mixture_sampler


def test_it_is_plain_autograds_and_unknown_variables_are_refused():
    sampler = mixture_sampler()
    metric = lambda images: images.square().mean((1, 2, 3))  # noqa: E731
    noise, cond = sampler.noise(2), sampler.encode(["x"] * 2)
    found = adp.gradients(sampler, metric, noise, cond, ["noise", "shift"])
    leaves = [noise.clone().requires_grad_(), cond["shift"].detach().clone().requires_grad_()]
    plain = sampler.replace(adjoint=adp.Backprop())(leaves[0], adp.Cond({"shift": leaves[1]}))
    exact = torch.autograd.grad(metric(plain).sum(), leaves)
    for name, gradient in zip(("noise", "shift"), exact, strict=True):
        torch.testing.assert_close(found.variables[name], gradient, rtol=1e-12, atol=1e-14)
    assert noise.grad is None
    with pytest.raises(adp.InputError, match=r"variables are some of noise, shift, weights"):
        adp.gradients(sampler, metric, noise, cond, ["mood"])
