"""The gradient of a mean over draws is the mean of their gradients, in any parts, and a run is repeated to the bit."""

import torch

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
