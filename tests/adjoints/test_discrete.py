"""Exact adjoints equal plain autograd on a real UNet with guidance, at six coarse steps."""

import itertools

import pytest
import torch

import adjointdpm as adp
from adjointdpm.flow.denoisers import Prediction
from tests.conftest import Mixture, standard_mixture, unet_sampler
from tests.tiny.gradients import gradient, inputs, loss_of
from tests.tiny.solvers import SOLVERS

EXACT = [adp.Checkpointed(), adp.Checkpointed(keep=3), adp.Checkpointed(budget=400_000)]
CASES = list(itertools.product(SOLVERS, Prediction))
IDS = [f"{solver!r}-{prediction.name}" for solver, prediction in CASES]


@pytest.mark.parametrize("adjoint", EXACT, ids=repr)
@pytest.mark.parametrize(("solver", "prediction"), CASES, ids=IDS)
def test_equal_to_backprop_bit_for_bit(solver, prediction, adjoint):
    truth, _ = gradient(solver, prediction, adp.Backprop())
    found, sampler = gradient(solver, prediction, adjoint)
    assert len(found) > 50
    for g, exact in zip(found, truth, strict=True):
        assert torch.equal(g, exact)
    clean = prediction is Prediction.VELOCITY  # whose own grid ends at sigma = 0
    assert sampler.stats.nfe_backward == solver.calls(6, clean)


@pytest.mark.parametrize(("solver", "prediction"), CASES, ids=IDS)
def test_backprop_passes_a_directional_finite_difference(solver, prediction):
    found, sampler = gradient(solver, prediction, adp.Backprop())
    noise, cond = inputs(sampler, requires_grad=False)
    leaves = [noise, *cond.values(), *sampler.parameters()]
    generator = torch.Generator().manual_seed(2)
    # Along each variable's own gradient, tilted: no part is drowned by another.
    ways = [
        g / g.norm().clamp(min=1e-30) + 0.1 * torch.randn(g.shape, generator=generator, dtype=g.dtype)
        for g in found
    ]
    groups = [[0], [1], [2], [3], list(range(4, len(leaves)))]
    for group in groups:
        predicted = sum(float((found[i] * ways[i]).sum()) for i in group)
        step, values = 2e-5, {}
        for sign in (2, 1, -1, -2):
            with torch.no_grad():
                for i in group:
                    leaves[i].add_(ways[i], alpha=sign * step)
                values[sign] = float(loss_of(sampler, noise, cond))
                for i in group:
                    leaves[i].sub_(ways[i], alpha=sign * step)
        difference = 8 * (values[1] - values[-1]) - (values[2] - values[-2])  # fourth order in the step
        assert difference / (12 * step) == pytest.approx(predicted, rel=1e-6)


@pytest.mark.parametrize("adjoint", EXACT, ids=repr)
def test_split_guidance_is_the_same_gradient(adjoint):
    truth, _ = gradient(adp.DPMSolverPP(2), Prediction.EPS, adp.Backprop())
    found, sampler = gradient(adp.DPMSolverPP(2), Prediction.EPS, adjoint, split=True)
    for g, exact in zip(found, truth, strict=True):
        torch.testing.assert_close(g, exact, rtol=1e-11, atol=1e-12 * float(exact.abs().max()))
    assert sampler.stats.nfe_backward == 12


@pytest.mark.parametrize("keep", [0, 1, 3, 6, 99])
def test_the_last_calls_keep_their_graph(keep):
    sampler = unet_sampler(steps=6, adjoint=adp.Checkpointed(keep=keep))
    loss_of(sampler, *inputs(sampler)).backward()
    assert sampler.stats.nfe_forward == 6 + 6 - min(keep, 6)


def test_recomputation_runs_from_the_last_call_to_the_first():
    sampler = unet_sampler(steps=6, adjoint=adp.Checkpointed(keep=2))
    seen = []
    sampler.model.denoiser.network.register_forward_pre_hook(lambda unet, args: seen.append(float(args[1])))
    loss_of(sampler, *inputs(sampler)).backward()
    assert seen == sorted(seen[:6], reverse=True) + sorted(seen[:4])


@pytest.mark.parametrize(
    "adjoint", [adp.Backprop(), adp.Checkpointed(), adp.Checkpointed(keep=3)], ids=repr
)
@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
@pytest.mark.parametrize("bounded", [False, True])
def test_gradient_of_the_time_grid(solver, adjoint, bounded):
    schedule = adp.VPLinear(bounded=bounded)
    model = Mixture(schedule, standard_mixture(schedule), (2,))
    noise = torch.randn(2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    times = adp.grids.log_snr(schedule, 6)
    sampler = adp.FlowSampler(model, solver=solver, adjoint=adjoint, grid=times.clone().requires_grad_())
    (found,) = torch.autograd.grad(loss_of(sampler, noise, adp.Cond()), sampler.grid)
    way = torch.tensor([0.0, -1, 1, 1, -1, 1, 0], dtype=torch.float64) * times
    values = [
        loss_of(sampler.replace(grid=times + sign * 1e-6 * way), noise, adp.Cond()).item()
        for sign in (1, -1)
    ]
    assert (values[0] - values[1]) / 2e-6 == pytest.approx(float(found @ way), rel=1e-6)


def test_float32_and_dropout_are_replayed():
    sampler = unet_sampler(steps=4, adjoint=adp.Checkpointed())
    unet = sampler.model.denoiser.network
    for module in unet.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.3
    unet.train().float()
    results = []
    for adjoint in (adp.Backprop(), adp.Checkpointed()):
        torch.manual_seed(5)
        noise, cond = inputs(sampler)
        torch.manual_seed(6)
        loss_of(sampler.replace(adjoint=adjoint), noise, cond).backward()
        results.append(noise.grad)
    assert torch.equal(*results)


def test_truncated_is_exact_for_the_calls_it_keeps():
    sampler = unet_sampler(solver=adp.Euler(), steps=4)
    noise, cond = inputs(sampler)
    noise.requires_grad_(False)
    calls = torch.autograd.grad(
        loss_of(sampler.replace(adjoint=adp.Truncated(last=4)), noise, cond), cond["prompt_embeds"]
    )
    everything = torch.autograd.grad(loss_of(sampler, noise, cond), cond["prompt_embeds"])
    assert torch.equal(calls[0], everything[0])
    # The last call alone: differentiate one step from the state that the others lead to.
    one = sampler.replace(grid=adp.grids.uniform(sampler.model.schedule, 4)[3:])
    before = sampler.replace(grid=adp.grids.uniform(sampler.model.schedule, 4)[:4])
    with torch.no_grad():
        state = before.latents(noise, cond)
    truth = torch.autograd.grad(loss_of(one, state, cond), cond["prompt_embeds"])
    found = torch.autograd.grad(
        loss_of(sampler.replace(adjoint=adp.Truncated(last=1)), noise, cond), cond["prompt_embeds"]
    )
    torch.testing.assert_close(found[0], truth[0], rtol=1e-9, atol=1e-12)
