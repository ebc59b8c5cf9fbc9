"""LeapAlign equals its published loop, and the exact gradient where its leaps are the sampler's steps."""

import pytest
import torch

import adjointdpm as adp
from adjointdpm.adjoints.draws import draws
from tests.tiny.surrogates import by_hand, close, flow, gradients_of, gradients_to, noise_model, start


@pytest.mark.parametrize("similarity", [None, 1e-9, 0.1, 5.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_published_loop(similarity, seed):
    adjoint = adp.LeapAlign(coupling=0.3, similarity=similarity, seed=seed)
    sampler = flow(steps=8, adjoint=adjoint)
    noise, cond = start(seed=seed)
    found = gradients_of(sampler, noise, cond)
    k, j = sorted(draws(seed, noise).sample(range(8), 2))
    states, _, s, v = by_hand(sampler, noise, cond)
    leap = states[k] + (s[j] - s[k]) * v(states[k], k)
    pinned = leap + (states[j] - leap).detach()
    final = pinned - s[j] * v(0.3 * pinned + 0.7 * pinned.detach(), j)
    if similarity is not None:
        away = [(leap - states[j]).abs().mean(1), (final - states[8]).abs().mean(1)]
        final = final / sum(each.detach().clamp(min=similarity) for each in away)[:, None]
    close(found, gradients_to(final, sampler, cond))


def test_a_model_of_noise_leaps_by_ddim():
    adjoint = adp.LeapAlign(coupling=0.3, similarity=0.05)
    sampler = noise_model(steps=8, adjoint=adjoint)
    noise, cond = start()
    found = gradients_of(sampler, noise, cond)
    schedule, t = sampler.model.schedule, sampler.times()
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    k, j = sorted(draws(0, noise / alpha[0]).sample(range(8), 2))
    eps = lambda x, i: sampler.model.denoiser(x, t[i], cond)  # noqa: E731
    ddim = lambda x, i, end, e: alpha[end] * (x - sigma[i] * e) / alpha[i] + sigma[end] * e  # noqa: E731
    states = [noise]
    with torch.no_grad():
        for i in range(8):
            states.append(ddim(states[-1], i, i + 1, eps(states[-1], i)))
    leap = ddim(states[k], k, j, eps(states[k], k))
    pinned = leap + (states[j] - leap).detach()
    final = ddim(pinned, j, 8, eps(0.3 * pinned + 0.7 * pinned.detach(), j))
    away = [(leap - states[j]).abs().mean(1), (final - states[8]).abs().mean(1)]
    final = final / sum(each.detach().clamp(min=0.05) for each in away)[:, None]
    close(found, gradients_to(final, sampler, cond))


def test_two_steps_with_the_whole_coupling_are_exact():
    sampler = flow(steps=2, adjoint=adp.LeapAlign(coupling=1.0, similarity=None))
    noise, cond = start()
    close(
        gradients_of(sampler, noise, cond),
        gradients_of(sampler.replace(adjoint=adp.Backprop()), noise, cond),
    )
    less = gradients_of(sampler.replace(adjoint=adp.LeapAlign(coupling=0.5, similarity=None)), noise, cond)
    assert float((less[0] - gradients_of(sampler, noise, cond)[0]).norm()) > 1e-3


def test_a_constant_velocity_gets_the_gradient_from_call_k_on():
    sampler = flow("constant", steps=8, adjoint=adp.LeapAlign(similarity=None))
    noise, cond = start()
    k, _ = sorted(draws(0, noise).sample(range(8), 2))
    exact = gradients_of(sampler.replace(adjoint=adp.Backprop()), noise, cond)
    close(gradients_of(sampler, noise, cond), [float(sampler.times()[k]) * each for each in exact])


def test_all_pairs_are_drawn():
    pairs = {tuple(sorted(draws(seed, torch.zeros(1)).sample(range(4), 2))) for seed in range(200)}
    assert len(pairs) == 6


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: adp.LeapAlign(coupling=1.5), "coupling must be at least 0 and at most 1"),
        (lambda: adp.LeapAlign(similarity=0.0), "similarity, a distance, must be above 0"),
        (lambda: gradients_of(flow(steps=1, adjoint=adp.LeapAlign()), *start()), "at least 2 steps"),
    ],
)
def test_settings_that_cannot_be_used(make, message):
    with pytest.raises(adp.InputError, match=message):
        make()
