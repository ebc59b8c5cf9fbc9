"""DRTune equals its published loop, for a rectified flow and for a model of noise, and what is known in closed form."""

import pytest
import torch

import adjointdpm as adp
from adjointdpm.adjoints.draws import draws
from adjointdpm.adjoints.surrogate import equally_spaced
from tests.tiny.surrogates import (
    WEIGHT,
    by_hand,
    close,
    flow,
    gradients_of,
    gradients_to,
    noise_model,
    start,
)


def chosen(adjoint, initial, N):
    """The calls and the stop, in the order in which they are drawn."""
    choices = draws(adjoint.seed, initial)
    last = round(N * adjoint.early_stop)
    stop = N - choices.randint(1, last) if last else None
    return equally_spaced(adjoint.steps, N if stop is None else stop + 1, choices), stop


@pytest.mark.parametrize("early_stop", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_published_loop_on_a_rectified_flow(early_stop, seed):
    adjoint = adp.DRTune(steps=3, early_stop=early_stop, seed=seed)
    sampler = flow(steps=9, adjoint=adjoint)
    noise, cond = start(seed=seed)
    found = gradients_of(sampler, noise, cond)
    calls, stop = chosen(adjoint, noise, 9)
    _, _, s, v = by_hand(sampler, noise, cond)
    x = noise
    for i in range(9):
        velocity = v(x.detach(), i)
        velocity = velocity if i in calls else velocity.detach()
        if i == stop:
            x = x - s[i] * velocity  # the data prediction
            break
        x = x + (s[i + 1] - s[i]) * velocity
    close(found, gradients_to(x, sampler, cond))


@pytest.mark.parametrize("early_stop", [0.0, 0.4])
def test_the_published_loop_on_a_model_of_noise_is_ddim(early_stop):
    adjoint = adp.DRTune(steps=3, early_stop=early_stop)
    sampler = noise_model(steps=9, adjoint=adjoint)
    noise, cond = start()
    found = gradients_of(sampler, noise, cond)
    schedule, t = sampler.model.schedule, sampler.times()
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    calls, stop = chosen(adjoint, noise / alpha[0], 9)
    x = noise
    for i in range(9):
        eps = sampler.model.denoiser(x.detach(), t[i], cond)
        eps = eps if i in calls else eps.detach()
        end = 9 if i == stop else i + 1  # from the stop on one step to the end
        x = alpha[end] * (x - sigma[i] * eps) / alpha[i] + sigma[end] * eps
        if i == stop:
            break
    close(found, gradients_to(x, sampler, cond))


def test_every_call_on_a_linear_field_leaves_the_jacobians_out():
    """v = m x: the gradient of m is sum_i D_i x_i, without the factors (1 + D m) of the later steps."""
    sampler = flow("linear", steps=5, adjoint=adp.DRTune(steps=5, early_stop=0.0))
    noise, cond = start()
    cond = cond.map(torch.Tensor.detach)  # which this field does not read
    states, _, s, _ = by_hand(sampler, noise, cond)
    m = sampler.model.denoiser.slope.item()
    truth = sum((s[i + 1] - s[i]) * noise * (1 - m / 5) ** i for i in range(5))
    (found,) = gradients_of(sampler, noise, cond)
    close([found], [(truth * WEIGHT).sum()])
    torch.testing.assert_close(states[5], noise * (1 - m / 5) ** 5)
    (exact,) = gradients_of(sampler.replace(adjoint=adp.Backprop()), noise, cond)
    close([exact], [(-noise * (1 - m / 5) ** 4 * WEIGHT).sum()])
    assert (
        float(found / exact) > 1.3
    )  # this field contracts, and what is left out would have made it smaller


def test_where_no_velocity_depends_on_its_state_every_call_is_exact():
    noise, cond = start()
    for early_stop in (0.0, 0.5):
        sampler = flow("constant", steps=6, adjoint=adp.DRTune(steps=6, early_stop=early_stop))
        exact = gradients_of(sampler.replace(adjoint=adp.Backprop()), noise, cond)
        close(gradients_of(sampler, noise, cond), exact)


def test_one_step_is_exact():
    sampler = flow(steps=1, adjoint=adp.DRTune())
    noise, cond = start()
    close(
        gradients_of(sampler, noise, cond),
        gradients_of(sampler.replace(adjoint=adp.Backprop()), noise, cond),
    )


def test_a_stop_is_in_the_last_part_of_the_calls():
    noise = torch.zeros(1)
    stops = {chosen(adp.DRTune(seed=seed), noise, 25)[1] for seed in range(200)}
    assert stops == set(range(15, 25))
    for seed in range(50):
        calls, stop = chosen(adp.DRTune(seed=seed), noise, 25)
        assert len(calls) == 3
        assert calls[-1] <= stop


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: adp.DRTune(steps=0), "steps is a number of denoiser calls, at least 1, but is 0"),
        (
            lambda: adp.DRTune(early_stop=1.5),
            "early_stop, a share of the calls, must be at least 0 and at most 1",
        ),
        (lambda: adp.DRTune(early_stop=float("nan")), "early_stop"),
    ],
)
def test_settings_that_cannot_be_used(make, message):
    with pytest.raises(adp.InputError, match=message):
        make()
