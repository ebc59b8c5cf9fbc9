"""FlowBP's three connectors equal loops written by hand, and the exact gradient where they degenerate to it."""

import random
from collections import Counter

import pytest
import torch

import adjointdpm as adp
from adjointdpm.adjoints.draws import draws
from adjointdpm.adjoints.flowbp import lagrange_weights, late_biased
from adjointdpm.adjoints.surrogate import Quadrature
from adjointdpm.flow.grids import TimeGrid
from adjointdpm.flow.probability_flow import ProbabilityFlow
from adjointdpm.solvers.integrate import IVP
from tests.tiny.surrogates import by_hand, close, flow, gradients_of, gradients_to, start

N = 9


def plan_of(adjoint, sampler, noise, cond):
    """The plan of one sampling, made again."""
    grid = TimeGrid(sampler.model.schedule, sampler.times())
    ivp = IVP(
        ProbabilityFlow(sampler.model.schedule, sampler.model.denoiser), sampler.solver, grid, noise, cond
    )
    return adjoint.plan(ivp, Quadrature(ivp), draws(adjoint.seed, noise))


def scaled(v, g):
    return v.detach() + g * (v - v.detach())


@pytest.mark.parametrize("rescale", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_sparse_by_hand(rescale, seed):
    sampler = flow(steps=N, adjoint=adp.FlowBP(steps=3, rescale=rescale, seed=seed))
    noise, cond = start(seed=seed)
    found = gradients_of(sampler, noise, cond)
    active = late_biased(range(N), 3, 2.0, draws(seed, noise))
    states, velocities, s, v = by_hand(sampler, noise, cond)
    g = 1 + rescale * (N / 3 - 1)  # all steps are equal
    x = noise
    for i in range(N):
        each = scaled(v(states[i], i), g) if i in active else velocities[i]
        x = x + (s[i + 1] - s[i]) * each
    close(found, gradients_to(x, sampler, cond))


@pytest.mark.parametrize("seed", range(4))
def test_bridge_by_hand(seed):
    adjoint = adp.FlowBP(connector="bridge", steps=4, coupling=0.1, rescale=0.5, seed=seed)
    sampler = flow(steps=N, adjoint=adjoint)
    noise, cond = start(seed=seed)
    found = gradients_of(sampler, noise, cond)
    plan = plan_of(adjoint, sampler, noise, cond)
    active, j = set(plan.weights), plan.cut
    assert j in active
    assert len(active) == 4
    assert any(i < j for i in active)
    states, velocities, s, v = by_hand(sampler, noise, cond)
    g = 1 + 0.5 * (N / 4 - 1)
    x = noise
    for i in range(j):
        x = x + (s[i + 1] - s[i]) * (scaled(v(states[i], i), g) if i in active else velocities[i])
    pinned = x + (states[j] - x).detach()
    x = pinned
    for i in range(j, N):
        given = 0.1 * pinned + 0.9 * pinned.detach() if i == j else states[i]
        x = x + (s[i + 1] - s[i]) * (scaled(v(given, i), g) if i in active else velocities[i])
    close(found, gradients_to(x, sampler, cond))


@pytest.mark.parametrize("similarity", [None, 0.02])
@pytest.mark.parametrize("seed", range(4))
def test_lagrange_by_hand(seed, similarity):
    adjoint = adp.FlowBP(connector="lagrange", rescale=0.5, similarity=similarity, seed=seed)
    sampler = flow(steps=N, adjoint=adjoint)
    noise, cond = start(seed=seed)
    found = gradients_of(sampler, noise, cond)
    plan = plan_of(adjoint, sampler, noise, cond)
    k, j = min(plan.weights), plan.cut
    states, velocities, s, v = by_hand(sampler, noise, cond)

    def interval(x, first, last, given):
        length = last - first
        supports = range(first, last) if length <= 3 else [first, first + round((length - 1) / 2), last - 1]
        points = [float(s[i]) for i in supports]
        # The polynomial through the supports, integrated coefficient by coefficient.
        powers = torch.tensor([[p**m for m in range(len(points))] for p in points], dtype=torch.float64)
        ends = [
            (float(s[last]) ** (m + 1) - float(s[first]) ** (m + 1)) / (m + 1) for m in range(len(points))
        ]
        L = torch.linalg.solve(powers.T, torch.tensor(ends, dtype=torch.float64))
        g = 1 + 0.5 * (float(L.abs().sum() / L[:2].abs().sum()) - 1)
        for place, (i, weight) in enumerate(zip(supports, L, strict=True)):
            if place == 0:
                x = x + weight * scaled(v(given, i), g)
            elif place == 1:
                x = x + weight * scaled(v(states[i], i), 0.25 * g)
            else:
                x = x + weight * velocities[i]
        return x

    leap = interval(states[k], k, j, states[k])
    pinned = leap + (states[j] - leap).detach()
    final = interval(pinned, j, N, 0.1 * pinned + 0.9 * pinned.detach())
    if similarity is not None:
        away = [(leap - states[j]).abs().mean(1), (final - states[N]).abs().mean(1)]
        final = final / sum(each.detach().clamp(min=similarity) for each in away)[:, None]
    close(found, gradients_to(final, sampler, cond))


@pytest.mark.parametrize("solver", [adp.Euler(), adp.DPMSolverPP(2), adp.Heun(), adp.RK4()], ids=repr)
def test_one_step_is_exact_and_so_are_two_with_the_whole_coupling(solver):
    noise, cond = start()
    for steps, adjoint in (
        (1, adp.FlowBP()),
        (2, adp.FlowBP(connector="bridge", coupling=1.0)),
        (2, adp.FlowBP(connector="lagrange", coupling=1.0)),
    ):
        if solver != adp.Euler() and (adjoint.connector == "lagrange" or solver.calls(1) > 1):
            continue
        sampler = flow(steps=steps, solver=solver, adjoint=adjoint)
        exact = gradients_of(sampler.replace(adjoint=adp.Backprop()), noise, cond)
        close(gradients_of(sampler, noise, cond), exact)


@pytest.mark.parametrize("seed", range(3))
def test_with_rescaling_a_constant_velocity_has_its_exact_gradient(seed):
    noise, cond = start()
    for adjoint in (
        adp.FlowBP(steps=2, rescale=1.0, seed=seed),
        adp.FlowBP(connector="bridge", steps=3, rescale=1.0, seed=seed),
    ):
        sampler = flow("constant", steps=N, adjoint=adjoint)
        exact = gradients_of(sampler.replace(adjoint=adp.Backprop()), noise, cond)
        close(gradients_of(sampler, noise, cond), exact)
    adjoint = adp.FlowBP(connector="lagrange", scale=1.0, rescale=1.0, order=2, seed=seed)
    sampler = flow("constant", steps=N, adjoint=adjoint)
    k = min(plan_of(adjoint, sampler, noise, cond).weights)
    close(gradients_of(sampler, noise, cond), [float(sampler.times()[k]) * each for each in exact])


def test_calls_are_drawn_with_their_probability():
    choices, counts = random.Random(0), Counter()
    for _ in range(20_000):
        counts.update(late_biased(range(4), 1, 2.0, choices))
    for i in range(4):
        p = (i + 1) ** 2 / 30
        assert abs(counts[i] / 20_000 - p) < 4 * (p * (1 - p) / 20_000) ** 0.5
    counts = Counter()
    for _ in range(20_000):
        counts.update(late_biased(range(5), 2, 0.0, choices))
    assert all(abs(counts[i] / 20_000 - 0.4) < 4 * (0.24 / 20_000) ** 0.5 for i in range(5))
    assert late_biased([3, 5, 8], 7, 2.0, choices) == [3, 5, 8]


def test_without_bias_the_mean_over_seeds_is_the_share_of_all_calls():
    """E of the sum over K of N calls is K / N of the sum over all."""
    noise, cond = start()
    sampler = flow(steps=5, adjoint=adp.FlowBP(steps=5))
    whole = gradients_of(sampler, noise, cond)[1]
    seen = {}
    for seed in range(60):
        adjoint = adp.FlowBP(steps=1, bias=0.0, seed=seed)
        (i,) = plan_of(adjoint, sampler, noise, cond).weights
        if i not in seen:
            seen[i] = gradients_of(sampler.replace(adjoint=adjoint), noise, cond)[1]
    assert len(seen) == 5
    torch.testing.assert_close(sum(seen.values()) / 5, whole / 5, rtol=1e-12, atol=1e-14)


def test_lagrange_weights_integrate_polynomials():
    points = [0.9, 0.7, 0.35]
    weights = lagrange_weights(points, 0.9, 0.1)
    for m in range(3):
        integral = (0.1 ** (m + 1) - 0.9 ** (m + 1)) / (m + 1)
        assert sum(w * p**m for w, p in zip(weights, points, strict=True)) == pytest.approx(
            integral, rel=1e-12
        )
    assert lagrange_weights([0.5], 0.5, 0.2) == pytest.approx([-0.3])


def test_the_intervals_of_lagrange_are_in_order_and_not_empty():
    for steps in (2, 3, 9, 25):
        sampler = flow(steps=steps)
        noise, cond = start()
        for seed in range(25):
            adjoint = adp.FlowBP(connector="lagrange", order=1, seed=seed)
            plan = plan_of(adjoint, sampler, noise, cond)
            assert 0 <= min(plan.weights) < plan.cut < steps


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: adp.FlowBP(connector="spline"),
            "connector is one of sparse, bridge, lagrange, but is 'spline'|spline",
        ),
        (lambda: adp.FlowBP(steps=0), "steps, the differentiated calls, must be at least 1"),
        (
            lambda: adp.FlowBP(connector="bridge", steps=1),
            "steps, the differentiated calls, must be at least 2",
        ),
        (lambda: adp.FlowBP(bias=-1.0), "bias must be at least 0"),
        (lambda: adp.FlowBP(rescale=-1.0), "rescale must be at least 0"),
        (lambda: adp.FlowBP(coupling=2.0), "coupling must be at least 0 and at most 1"),
        (lambda: adp.FlowBP(scale=2.0), "scale must be at least 0 and at most 1"),
        (lambda: adp.FlowBP(order=0), "order, of the interpolation, must be at least 1"),
        (lambda: adp.FlowBP(similarity=0.0), "similarity, a distance, must be above 0"),
        (
            lambda: gradients_of(flow(steps=1, adjoint=adp.FlowBP(connector="bridge")), *start()),
            "at least 2 steps, one on each side of the cut",
        ),
    ],
)
def test_settings_that_cannot_be_used(make, message):
    with pytest.raises((adp.InputError, Exception), match=message) as error:
        make()
    assert isinstance(error.value, adp.InputError) or "spline" in str(error.value)
