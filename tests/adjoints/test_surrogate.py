"""What all surrogates share: the sampler's own image, replayed choices, flat memory, and refusals before the work."""

import inspect
import itertools
import random

import diffusers
import pytest
import torch

import adjointdpm as adp
from adjointdpm.adjoints.surrogate import Quadrature, equally_spaced, straight_through
from adjointdpm.flow.denoisers import Prediction
from adjointdpm.flow.grids import TimeGrid
from adjointdpm.flow.probability_flow import ProbabilityFlow
from adjointdpm.solvers.integrate import IVP, integrate
from tests.conftest import unet_sampler
from tests.tiny.calls import arguments, small
from tests.tiny.gradients import inputs, loss_of
from tests.tiny.pipelines import first, vp
from tests.tiny.solvers import SOLVERS
from tests.tiny.surrogates import WEIGHT, flow, gradients_of, leaves_of, noise_model, start

OWN_STEPS = [
    adp.DRTune(steps=2),
    adp.DRTune(steps=3, early_stop=0.0),
    adp.FlowBP(steps=3),
    adp.FlowBP(connector="bridge", steps=3, rescale=1.0),
    adp.DirectAlign(),
]
LEAPS = [
    adp.FlowBP(connector="lagrange"),
    adp.FlowBP(connector="lagrange", similarity=0.2, rescale=0.5),
    adp.LeapAlign(),
]
NOISY = [adp.Ancestral(), adp.EulerMaruyama(), adp.SDEDPMSolverPP()]
EVERY = [*SOLVERS, *NOISY, adp.Coupled(adp.Euler())]


def without_noise_gradient(sampler):
    noise, cond = inputs(sampler)
    return noise.detach(), cond


@pytest.mark.parametrize("adjoint", [*OWN_STEPS, *LEAPS], ids=repr)
def test_a_guided_unet_has_the_same_image(adjoint):
    sampler = unet_sampler(steps=5, adjoint=adjoint)
    noise, cond = without_noise_gradient(sampler)
    latents = sampler.latents(noise, cond)
    assert torch.equal(latents, sampler.replace(adjoint=adp.Backprop()).latents(noise, cond))
    leaves = [*cond.values(), *sampler.parameters()]
    found = torch.autograd.grad(latents.square().sum(), leaves)
    assert all(float(g.abs().max()) > 0 for g in found[:3])


@pytest.mark.parametrize("solver", EVERY, ids=repr)
def test_the_image_is_the_samplers_own_and_the_same_seed_gives_the_same_bits(solver):
    noise, cond = start()
    truth = noise_model(solver=solver, steps=5).latents(noise, cond)
    for adjoint in (*OWN_STEPS, *LEAPS):
        sampler = noise_model(solver=solver, steps=5, adjoint=adjoint)
        if adjoint in LEAPS and (solver in NOISY or solver.calls(4) != 4):
            with pytest.raises(adp.InputError, match="leaps over several steps"):
                sampler.latents(noise, cond)
            assert sampler.model.denoiser.calls == 0
            continue
        found = []
        for _ in range(2):
            latents = sampler.latents(noise, cond)
            assert torch.equal(latents, truth)
            found.append(torch.autograd.grad((latents * WEIGHT).sum(), leaves_of(sampler, cond)))
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
        assert all(bool(g.isfinite().all()) and float(g.abs().max()) > 0 for g in found[0])


@pytest.mark.parametrize(("count", "calls"), [(3, 25), (4, 4), (9, 4), (1, 7), (3, 10)])
def test_equally_spaced_calls_reach_every_offset(count, calls):
    seen = {tuple(equally_spaced(count, calls, random.Random(i))) for i in range(300)}
    stride = calls // min(count, calls)
    assert all({b - a for a, b in itertools.pairwise(each)} <= {stride} for each in seen)
    assert {each[0] for each in seen} == set(range(calls - (min(count, calls) - 1) * stride))
    assert max(each[-1] for each in seen) == calls - 1


@pytest.mark.parametrize("solver", EVERY, ids=repr)
def test_quadrature_adds_the_velocities_up_as_the_solver_does(solver):
    """z_N of the sampling = z_N without velocities + sum_i W_i v_i, and the same for each call's input."""
    sampler = unet_sampler(solver=solver, steps=5)
    noise, cond = without_noise_gradient(sampler)
    grid = TimeGrid(sampler.model.schedule, sampler.times())
    problem = ProbabilityFlow(sampler.model.schedule, sampler.model.denoiser)
    ivp = IVP(problem, solver, grid, problem.initial(noise, grid[0]), sampler.with_guidance(cond))
    given, slopes, still = [], [], []

    def f(state, time):
        given.append(state[0])
        slopes.append(ivp.velocity(state[0], time))
        return (slopes[-1],)

    def zero(state, time):
        still.append(state[0])
        return (torch.zeros_like(state[0]),)

    with torch.no_grad():
        (end,) = integrate(f, (ivp.initial,), grid, solver)
        (rest,) = integrate(zero, (ivp.initial,), grid, solver)
    quadrature = Quadrature(ivp)
    assert quadrature.calls == len(slopes) == ivp.calls
    for j, (with_them, without) in enumerate(zip([*given, end], [*still, rest], strict=True)):
        added = sum(w * v for w, v in zip(quadrature.weights(j), slopes, strict=True))
        torch.testing.assert_close(without + added, with_them, rtol=1e-11, atol=1e-11)
    assert quadrature.taus[0] == float(grid[0].tau)


def test_memory_is_flat_in_the_number_of_steps():
    for adjoint in [*OWN_STEPS[1:], *LEAPS[1:]]:
        saved = []
        for steps in (6, 16):
            sampler = unet_sampler(solver=adp.Euler(), steps=steps, adjoint=adjoint)
            loss_of(sampler, *without_noise_gradient(sampler)).backward()
            saved.append(sampler.stats.bytes_saved)
        assert saved[1] <= saved[0] + 4 * 2 * 4 * 4 * 8  # 4 states, where the cut has one of its own


def test_memory_is_that_of_one_graph_and_a_state_a_call():
    saved = []
    for calls in (1, 5):
        sampler = unet_sampler(solver=adp.Euler(), steps=6, adjoint=adp.FlowBP(steps=calls))
        loss_of(sampler, *without_noise_gradient(sampler)).backward()
        saved.append(sampler.stats.bytes_saved)
    assert saved[1] == saved[0] + 4 * 2 * 4 * 4 * 8  # the input of each further call


@pytest.mark.parametrize("adjoint", [*OWN_STEPS, *LEAPS], ids=repr)
def test_noise_and_times_are_refused_before_the_work(adjoint):
    sampler = flow(adjoint=adjoint)
    noise, cond = start()
    with pytest.raises(adp.InputError, match="none for the noise; use Checkpointed"):
        sampler.latents(noise.requires_grad_(), cond)
    grid = adp.grids.uniform(sampler.model.schedule, 4).requires_grad_()
    with pytest.raises(adp.InputError, match="none for the time grid; use Checkpointed"):
        sampler.replace(grid=grid).latents(noise.detach(), cond)
    assert sampler.model.denoiser.calls == 0
    with torch.no_grad():
        sampler.latents(noise, cond)  # without a gradient there is nothing to refuse
    assert sampler.stats.nfe_backward == 0
    assert sampler.stats.bytes_saved == 0


def test_a_conditioning_without_influence_is_an_error():
    sampler = flow(adjoint=adp.FlowBP())
    noise, cond = start()
    with pytest.raises(adp.InputError, match=r"depends on cond\['other'\]"):
        sampler.latents(noise, cond.replace(other=torch.ones(2, 3).double().requires_grad_()))


def test_a_model_that_changes_between_the_passes_is_an_error():
    sampler = flow(adjoint=adp.DRTune())
    loss = sampler.latents(*start()).sum()
    with torch.no_grad():
        sampler.model.denoiser.bias.add_(1)
    with pytest.raises(adp.RecomputationError, match="bias"):
        loss.backward()


def test_a_surrogate_costs_the_calls_that_it_differentiates():
    for adjoint, calls in ((OWN_STEPS[0], 2), (OWN_STEPS[2], 3), (OWN_STEPS[3], 3), (LEAPS[2], 2)):
        sampler = flow(steps=9, adjoint=adjoint)
        gradients_of(sampler, *start())
        assert (sampler.stats.nfe_forward, sampler.stats.nfe_backward) == (9 + calls, calls)
    sampler = flow(steps=9, adjoint=adp.DirectAlign())
    gradients_of(sampler, *start())
    assert (sampler.stats.nfe_forward, sampler.stats.nfe_backward) == (11, 1)


def test_straight_through_has_one_tensors_bits_and_the_others_gradient():
    value = torch.tensor([[1e30, 0.1], [-0.0, 3.0]])
    carrier = torch.full((2, 2), 7.0, requires_grad=True)
    factor = torch.tensor([[2.0], [3.0]])
    out = straight_through(value, carrier, factor)
    assert torch.equal(out, value)
    assert torch.equal(out.signbit(), value.signbit())
    (found,) = torch.autograd.grad((out * torch.tensor([[1.0, 2.0], [3.0, 4.0]])).sum(), carrier)
    assert found.tolist() == [[2.0, 4.0], [9.0, 12.0]]


def reference(chosen):
    """Gradients through a pipeline's own loop, whose UNet gets a detached state in the chosen calls."""
    pipe = small(scheduler=vp(diffusers.DDIMScheduler))
    forward, seen = pipe.unet.forward, []

    def detached(sample, *args, **kwargs):
        seen.append(1)
        with torch.set_grad_enabled(len(seen) - 1 in chosen):
            return forward(sample.detach(), *args, **kwargs)

    pipe.unet.forward = detached
    given = pipeline_arguments()
    out = first(inspect.unwrap(type(pipe).__call__)(pipe, **given))
    return torch.autograd.grad(out.square().sum(), [given["prompt_embeds"], *pipe.unet.parameters()])


def pipeline_arguments():
    given = arguments(num_inference_steps=3)
    given["latents"] = given["latents"].detach()
    return given


@pytest.mark.parametrize(
    ("adjoint", "count"),
    [
        (adp.DRTune(steps=3, early_stop=0.0), 3),
        (adp.DRTune(steps=1, early_stop=0.0), 1),
        (adp.FlowBP(steps=3), 3),
        (adp.FlowBP(steps=1, bias=0.0, seed=4), 1),
    ],
    ids=repr,
)
def test_a_pipelines_own_steps_carry_the_gradient(adjoint, count):
    pipe = small(scheduler=vp(diffusers.DDIMScheduler))
    found, images = [], []
    for _ in range(2):
        given, call = pipeline_arguments(), adp.differentiable(pipe, adjoint)
        images.append(first(call(**given)))
        leaves = [given["prompt_embeds"], *pipe.unet.parameters()]
        found.append(torch.autograd.grad(images[-1].square().sum(), leaves))
        assert call.stats.nfe_backward == count
    assert torch.equal(images[0], first(adp.differentiable(pipe)(**pipeline_arguments())))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    candidates = [reference({0, 1, 2})] if count == 3 else [reference({i}) for i in range(3)]
    near = [
        all(torch.allclose(g, e, rtol=1e-4, atol=1e-6) for g, e in zip(found[0], each, strict=True))
        for each in candidates
    ]
    assert sum(near) == 1


def test_what_a_pipeline_cannot_do_is_refused():
    pipe = small(scheduler=vp(diffusers.DDIMScheduler))
    for adjoint, message in (
        (adp.DRTune(), r"DRTune\(steps=3, early_stop=0.0\) here"),
        (adp.FlowBP(connector="bridge"), "steps of this library's own"),
        (adp.FlowBP(rescale=0.5), "steps of this library's own"),
        (adp.LeapAlign(), "steps of this library's own"),
        (adp.DirectAlign(), "steps of this library's own"),
    ):
        with pytest.raises(adp.InputError, match=message):
            adp.differentiable(pipe, adjoint)
        with pytest.raises(adp.InputError, match=message):
            adp.PipelineSampler(pipe, adjoint=adjoint)
    call = adp.differentiable(pipe, adp.DRTune(early_stop=0.0))
    given = pipeline_arguments()
    given["latents"].requires_grad_()
    with pytest.raises(adp.InputError, match="none for the noise or image"):
        call(**given)


def test_the_choices_of_one_sampler_follow_its_noise():
    sampler = flow(steps=20, adjoint=adp.FlowBP(steps=1, bias=0.0))
    _, cond = start()
    noise = [start(seed=i)[0] for i in range(4)]
    found = [gradients_of(sampler, each, cond)[1] for each in noise]
    again = [gradients_of(sampler, each, cond)[1] for each in reversed(noise)]
    assert all(torch.equal(a, b) for a, b in zip(found, reversed(again), strict=True))


def test_prediction_of_data_and_of_noise_have_the_same_choices():
    for prediction in (Prediction.EPS, Prediction.V, Prediction.X0):
        sampler = unet_sampler(prediction, solver=adp.Euler(), steps=4, adjoint=adp.FlowBP(steps=2))
        noise, cond = without_noise_gradient(sampler)
        found = torch.autograd.grad(loss_of(sampler, noise, cond), cond["prompt_embeds"])
        assert float(found[0].abs().max()) > 0
        assert sampler.stats.nfe_backward == 2
