"""The gradient of a mean over draws is the mean of their gradients, in any parts, and a run is repeated to the bit."""

import pytest
import torch

import adjointdpm as adp
from adjointdpm.attacks import Attack, ImageBall, judged, random_search
from adjointdpm.attacks.expectation import Expectation, is_random, over_draws
from adjointdpm.attacks.losses import loss
from adjointdpm.optimization.seeds import forked
from tests.attacks.noisy import Linear, Noisy, images

LABELS = torch.tensor([0, 1, 2])


def test_the_gradient_is_that_of_the_mean():
    x, model = images(), Noisy()
    found = Expectation(model, "ce", 7, None, 3)(x, LABELS, "here")
    leaf = x.clone().requires_grad_()
    draws = []
    for j in range(7):
        with forked(3, "draw", "here", 0, j):
            draws.append(loss("ce", model(leaf), LABELS))
    mean = torch.stack(draws).mean(0)
    (expected,) = torch.autograd.grad(mean.sum(), leaf)
    assert torch.allclose(found.values, mean.detach(), rtol=1e-12)
    assert torch.allclose(found.gradient, expected, rtol=1e-12)
    assert float(torch.stack(draws).detach().std(0).min()) > 0  # the draws are several


def test_parts_of_a_batch_are_the_whole_of_it_where_nothing_is_random():
    x, model = images(), Linear()
    whole, parts = (Expectation(model, "dlr", 2, size, 0)(x, LABELS, "x") for size in (None, 2))
    assert torch.allclose(whole.gradient, parts.gradient, rtol=1e-12)
    assert torch.allclose(whole.values, parts.values, rtol=1e-12)
    assert torch.allclose(whole.margins, parts.margins, rtol=1e-12)


def test_draws_are_fresh_at_every_point_and_the_same_in_a_repeated_run():
    x, mean = images(), Expectation(Noisy(), "ce", 2, 2, 0)
    first, again, other = (mean(x, LABELS, 0, step) for step in (1, 1, 2))
    assert torch.equal(first.gradient, again.gradient)
    assert not torch.equal(first.gradient, other.gradient)
    before = torch.get_rng_state()
    mean(x, LABELS, 0, 3)
    assert torch.equal(before, torch.get_rng_state())  # nothing outside is changed


def test_what_is_random_is_known():
    x = images()
    assert is_random(Noisy(), x)
    assert not is_random(Linear(), x)
    draws = over_draws(Noisy(), x, 3, 2, 0, "fresh")
    assert draws.shape == (3, 3, 4)
    assert not torch.equal(draws[0], draws[1])
    assert torch.equal(draws, over_draws(Noisy(), x, 3, 2, 0, "fresh"))


class Kinked(Linear):
    """Its logits are finite and its gradient is not, as that of a norm at zero."""

    def forward(self, x):
        return super().forward(x) + (0 * x).flatten(1).square().sum(1, keepdim=True).sqrt()


class Broken(Linear):
    def forward(self, x):
        return super().forward(x) + torch.tensor([[0.0, torch.nan, 0.0, 0.0]])


def test_an_attack_that_would_stand_still_at_nan_is_an_error():
    x = images()
    with pytest.raises(adp.NonFiniteError, match="gradient of the loss ce is not finite for 3 of 3 points"):
        Attack(steps=2, loss="ce")(Kinked(), x, LABELS)
    for call in (
        lambda: Attack(steps=2)(Broken(), x, LABELS),
        lambda: judged(Broken(), x, LABELS),
        lambda: random_search(Broken(), x, LABELS, ImageBall(), 1),
    ):
        with pytest.raises(adp.NonFiniteError, match="logits are NaN"):
            call()


def test_a_classifier_that_normalizes_by_its_batch_is_refused():
    x, model = images(), torch.nn.Sequential(torch.nn.BatchNorm2d(1), Linear()).double()
    for call in (lambda: Attack(steps=2)(model, x, LABELS), lambda: judged(model, x, LABELS)):
        with pytest.raises(adp.InputError, match="0, a BatchNorm2d, is in training mode"):
            call()
    assert torch.equal(judged(model.eval(), x, LABELS).said[0], model(x).argmax(1))
