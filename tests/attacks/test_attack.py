"""Attacks on linear classifiers reach the closed form; a lucky draw is not kept; what cannot be attacked is refused."""

import pytest
import torch
from torch import nn

import adjointdpm as adp
from adjointdpm.attacks import APGD, PGD, Attack, Ball, ImageBall, judged
from adjointdpm.attacks.losses import margin
from tests.attacks.noisy import Linear, Noisy, images


class Two(Linear):
    """Two classes, whose margin is linear."""

    def __init__(self):
        super().__init__(classes=2)


@pytest.mark.parametrize("method", [APGD(), PGD(0.25), PGD(0.25, momentum=0.9)])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_on_a_linear_classifier_the_optimum_is_the_closed_form(method, norm):
    """min z_0 - z_1 over the ball is m - r |w|_1, or m - r |w|_2, with w = W_0 - W_1."""
    model, x, labels = Two(), images(), torch.zeros(3, dtype=torch.long)
    radius = 8 / 255
    found = Attack(ball=ImageBall(radius, norm), method=method, steps=25)(model, x, labels)
    w = model.weight[0] - model.weight[1]
    length = w.abs().sum() if norm == "linf" else w.norm()
    best = margin(model(x), labels) - radius * length
    assert torch.allclose(found.margins, best, rtol=1e-4)
    if norm == "linf":  # a whole number of levels: rounding changes nothing
        assert torch.allclose(margin(model(found.x), labels), best, rtol=1e-6)
    assert float(ImageBall(radius, norm).distance(found.x, x).max()) <= radius * (1 + 1e-9)
    assert found.gradients == 25
    assert found.zero_gradients == 0


@pytest.mark.parametrize("loss", ["ce", "dlr", "margin"])
def test_every_loss_misleads_and_so_do_runs_towards_each_class(loss):
    model, x = Linear(), images(6)
    labels = model(x).argmax(1)
    away = Attack(ball=ImageBall(60 / 255), loss=loss, steps=20)(model, x, labels)
    towards = Attack(ball=ImageBall(60 / 255), loss=loss, steps=20, targets=3)(model, x, labels)
    assert bool(judged(model, away.x, labels).majority.all())
    assert bool(judged(model, towards.x, labels).majority.all())
    assert towards.gradients == 60
    wish = (labels + 1) % 4
    reached = Attack(ball=ImageBall(0.5), loss=loss, steps=20)(model, x, labels, wish)
    assert torch.equal(model(reached.x).argmax(1), wish)


class Lucky(nn.Module):
    """Away from the centre all draws are right but one in eight, at the centre all are nearly wrong."""

    def forward(self, x):
        away = (x - 0.5).abs().flatten(1).amax(1) > 1e-3
        lucky = torch.rand(len(x)) < 1 / 8
        right = torch.where(away, torch.where(lucky, -9.0, 9.0), 0.1)
        return torch.stack([right, torch.zeros_like(right)], 1) + 0 * x.flatten(1).sum(1, keepdim=True)


def test_one_lucky_draw_is_not_kept():
    """A search that keeps what succeeded once ends at a point that fools one draw in eight."""
    x, labels = images(4) * 0 + 128 / 255, torch.zeros(4, dtype=torch.long)
    given = {"ball": ImageBall(8 / 255), "steps": 30}
    one, many = (Attack(**given, draws=k)(Lucky(), x, labels) for k in (1, 16))
    assert bool((one.margins < 0).all())  # what the attack itself believes with one draw
    assert bool((many.margins > 0).all())
    assert float(judged(Lucky(), one.x, labels, draws=40).each.double().mean()) < 0.3


def test_success_against_noise_needs_the_mean_over_draws():
    model, x = Noisy(3.0, size=(1, 6, 6)), images(12, size=(1, 6, 6))
    labels = judged(model, x, torch.zeros(12, dtype=torch.long), draws=200).voted
    given = {"ball": ImageBall(60 / 255), "steps": 12, "loss": "margin"}
    one, many = (
        judged(model, Attack(**given, draws=k)(model, x, labels).x, labels, draws=200, seed=9)
        for k in (1, 24)
    )
    assert float(many.each.double().mean()) > float(one.each.double().mean())


def test_a_run_is_repeated_to_the_bit_and_restarts_only_help():
    model, x, labels = Noisy(), images(), torch.tensor([0, 1, 2])
    first, again = (Attack(steps=6, draws=2, batch=2)(model, x, labels) for _ in range(2))
    assert torch.equal(first.x, again.x)
    more = Attack(steps=6, draws=2, batch=2, restarts=3)(model, x, labels)
    assert bool((more.margins <= first.margins).all())
    assert more.gradients == 3 * first.gradients
    assert len(more.losses) == 6


def test_noise_is_attacked_in_the_same_way():
    model = Linear()
    noise = torch.randn(3, 1, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels, ball = model(noise).argmax(1), Ball(1.0, shell=True)
    found = Attack(ball=ball, steps=30, loss="margin")(model, noise, labels)
    assert bool((found.margins < margin(model(noise), labels) - 1).all())
    assert float(ball.distance(found.x, noise).max()) <= 1 + 1e-9
    assert torch.allclose(found.x.flatten(1).norm(dim=1), noise.flatten(1).norm(dim=1))  # no range [0, 1]


class Flat(Linear):
    def forward(self, x):
        return super().forward(x) + 1e3 * torch.nn.functional.one_hot(torch.zeros(len(x)).long(), 4)


def test_gradients_that_vanish_are_counted():
    found = Attack(steps=4, loss="ce")(Flat(), images(), torch.zeros(3, dtype=torch.long))
    assert found.zero_gradients == 1.0  # of a cross-entropy of logits that are too large
    assert (
        Attack(steps=4, loss="dlr")(Flat(), images(), torch.zeros(3, dtype=torch.long)).zero_gradients < 1
    )


def test_what_cannot_be_attacked_is_refused():
    model, x, labels = Linear(), images(), torch.tensor([0, 1, 2])
    for given, arguments, message in (
        ({}, (nn.Sequential(model, nn.Softmax(1)), x, labels), "before the softmax"),
        ({}, (model, x, labels[:2]), "one class for each of 3"),
        ({}, (model, x, labels + 2), "numbers of 4 classes"),
        ({"targets": 2}, (model, x, labels, labels), "give it or a target"),
        ({"targets": 4}, (model, x, labels), "targets must be below 4"),
        ({}, (model, 2 * x - 1, labels), r"in \[0, 1\], but reach from -0.5.*attack noise in a Ball"),
        ({}, (model, 255 * x, labels), "but reach from 63 to 189"),
        ({}, (model, x / 0, labels), "but reach from inf to inf"),
    ):
        with pytest.raises(adp.InputError, match=message):
            Attack(steps=1, **given)(*arguments)
    for given in ({"steps": 0}, {"loss": "l2"}, {"draws": 0}):
        with pytest.raises(adp.InputError):
            Attack(**given)
