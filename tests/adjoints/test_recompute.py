"""Recomputing a denoiser call in one node: the same gradient as plain autograd, also where calls are odd."""

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel

import adjointdpm as adp
from adjointdpm.adjoints import recompute
from adjointdpm.adjoints.evaluation import Evaluation
from adjointdpm.flow.denoisers import Denoiser, Prediction
from tests.conftest import BareModel, scaled_linear, unet_sampler
from tests.tiny.gradients import inputs, loss_of


class Captured(Denoiser):
    """A layer whose scale is a tensor that is neither a parameter nor in the conditioning."""

    prediction = Prediction.EPS

    def __init__(self, scale, only_below=2000.0):
        super().__init__()
        self.layer = nn.Linear(3, 3, dtype=torch.float64)
        self.capture = lambda t: scale if float(t) < only_below else scale.detach()

    def forward(self, x, t, cond):
        return torch.tanh(self.layer(x)) * self.capture(t)


def captured(**settings):
    torch.manual_seed(0)
    scale = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64, requires_grad=True)
    denoiser = Captured(scale, **settings)
    model = BareModel(adp.VPDiscrete(scaled_linear()), denoiser, (3,))
    noise = torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return adp.FlowSampler(model, solver=adp.Euler(), steps=5), noise.requires_grad_(), scale


def test_a_tensor_that_only_the_call_knows_gets_its_gradient():
    sampler, noise, scale = captured()
    leaves = [noise, scale, *sampler.parameters()]
    found, truth = (
        torch.autograd.grad(loss_of(sampler.replace(adjoint=each), noise, adp.Cond()), leaves)
        for each in (adp.Checkpointed(), adp.Backprop())
    )
    assert float(truth[1].abs().min()) > 0
    assert all(torch.equal(g, exact) for g, exact in zip(found, truth, strict=True))


def test_a_tensor_that_later_calls_alone_know_is_an_error_not_a_wrong_gradient():
    sampler, noise, _ = captured(only_below=500.0)
    loss = loss_of(sampler, noise, adp.Cond())
    with pytest.raises(adp.InputError, match="which the first call did not"):
        loss.backward()


def test_hooks_on_weights_run_once():
    found = []
    for adjoint in (adp.Checkpointed(), adp.Backprop()):
        sampler = unet_sampler(steps=4, adjoint=adjoint)
        sampler.model.denoiser.network.conv_in.weight.register_hook(lambda g: 3 * g)
        loss_of(sampler, *inputs(sampler)).backward()
        found.append(sampler.model.denoiser.network.conv_in.weight.grad)
    assert torch.equal(*found)


@pytest.mark.parametrize("adjoint", [adp.Checkpointed(), adp.Checkpointed(keep=2)], ids=repr)
def test_the_gradients_own_gradient(adjoint):
    """A penalty on the gradient's norm: Checkpointed differentiates twice, like plain autograd."""
    found = []
    for each in (adjoint, adp.Backprop()):
        sampler = unet_sampler(steps=4, adjoint=each)
        noise, cond = inputs(sampler)
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernel has no second derivative
            (g,) = torch.autograd.grad(loss_of(sampler, noise, cond), noise, create_graph=True)
            leaves = [noise, cond["prompt_embeds"], sampler.model.denoiser.network.conv_in.weight]
            found.append(torch.autograd.grad(g.square().sum(), leaves))
    for g, exact in zip(*found, strict=True):
        torch.testing.assert_close(g, exact, rtol=1e-11, atol=1e-12 * float(exact.abs().max()))


def test_only_what_is_asked_for_is_made():
    """Weights that could have a gradient cost nothing where the noise's alone is asked for."""
    sampler = unet_sampler(steps=4)
    noise, cond = inputs(sampler)
    weights = {id(p) for p in sampler.parameters()}
    loss = loss_of(sampler, noise, cond)
    asked, grad = [], torch.autograd.grad

    def watched(out, leaves, *rest, **options):
        asked.append(sum(id(leaf) in weights for leaf in leaves))
        return grad(out, leaves, *rest, **options)

    recompute.torch.autograd.grad = watched
    try:
        grad(loss, noise, retain_graph=True)
        loss.backward()
    finally:
        recompute.torch.autograd.grad = grad
    assert asked == [0] * 4 + [len(weights)] * 4


def test_no_hook_is_put_on_what_the_graph_saves():
    """After the first call, which is measured, nothing but states and weights is saved for later."""
    sampler = unet_sampler(steps=6)
    noise, cond = inputs(sampler)
    own = {each.data_ptr() for each in (*sampler.parameters(), *cond.values())}
    seen = []

    def pack(tensor):
        if tensor.numel() > 1 and tensor.data_ptr() not in own:
            seen.append(tensor.numel())
        return tensor

    loss_of(sampler, noise, cond)
    with saved_tensors_hooks(pack, lambda tensor: tensor):
        again = recompute.Recomputation(sampler.model.denoiser)
        denoiser, t = sampler.model.denoiser, torch.tensor(500.0, dtype=torch.float64)
        for call in range(2):
            seen.clear()
            again.begin(call)
            again.run(Evaluation(denoiser, cond), noise, t, *cond.values())
    assert seen == [noise.numel()]


def test_written_over_before_the_backward_pass_is_an_error():
    sampler = unet_sampler(steps=4)
    noise, cond = inputs(sampler)
    loss = loss_of(sampler, noise, cond)
    with torch.no_grad():
        sampler.model.denoiser.network.conv_in.weight.mul_(2)
    with pytest.raises(adp.RecomputationError, match=r"conv_in.weight was changed in place"):
        loss.backward()
