"""Direct-Align equals its published step, and what is known in closed form."""

import pytest
import torch

import adjointdpm as adp
from adjointdpm.adjoints.draws import draws
from tests.tiny.surrogates import by_hand, close, flow, gradients_of, gradients_to, noise_model, start


@pytest.mark.parametrize("stride", [1, 3, 8])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_published_step(stride, seed):
    sampler = flow(steps=8, adjoint=adp.DirectAlign(stride=stride, seed=seed))
    noise, cond = start(seed=seed)
    found = gradients_of(sampler, noise, cond)
    i = draws(seed, noise).randint(0, 8 - stride)
    states, _, s, v = by_hand(sampler, noise, cond)
    now, then = s[i], s[i + stride]
    noised = now * noise + (1 - now) * states[8]
    recovered = (noised + (then - now) * v(noised, i) - then * noise) / (1 - then)
    close(found, gradients_to(recovered, sampler, cond))


def test_a_model_of_noise_steps_by_ddim():
    sampler = noise_model(steps=8, adjoint=adp.DirectAlign(stride=2))
    noise, cond = start()
    found = gradients_of(sampler, noise, cond)
    schedule, t = sampler.model.schedule, sampler.times()
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    i = draws(0, noise / alpha[0]).randint(0, 6)
    with torch.no_grad():
        clean = sampler.latents(noise, cond)
    x = alpha[i] * clean + sigma[i] * noise
    eps = sampler.model.denoiser(x, t[i], cond)
    then = alpha[i + 2] * (x - sigma[i] * eps) / alpha[i] + sigma[i + 2] * eps
    close(found, gradients_to((then - sigma[i + 2] * noise) / alpha[i + 2], sampler, cond))


def test_a_constant_velocity_gets_the_share_of_its_step():
    noise, cond = start()
    for seed in range(4):
        sampler = flow("constant", steps=8, adjoint=adp.DirectAlign(seed=seed))
        i = draws(seed, noise).randint(0, 7)
        s = sampler.times()
        share = float((s[i] - s[i + 1]) / (1 - s[i + 1]))
        exact = gradients_of(sampler.replace(adjoint=adp.Backprop()), noise, cond)
        close(gradients_of(sampler, noise, cond), [share * each for each in exact])


def test_one_step_from_pure_noise_is_exact():
    """x_s = eps at s = 1, and the step to s' = 0 recovers the sampler's own image."""
    sampler = flow(steps=1, adjoint=adp.DirectAlign())
    noise, cond = start()
    close(
        gradients_of(sampler, noise, cond),
        gradients_of(sampler.replace(adjoint=adp.Backprop()), noise, cond),
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: adp.DirectAlign(stride=0), "stride is a number of steps, at least 1, but is 0"),
        (
            lambda: gradients_of(flow(steps=3, adjoint=adp.DirectAlign(stride=4)), *start()),
            "more than the 3 steps",
        ),
    ],
)
def test_settings_that_cannot_be_used(make, message):
    with pytest.raises(adp.InputError, match=message):
        make()
