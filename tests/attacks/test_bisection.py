"""Bisection ends at the nearest success of the way, to the last halving, inside the ball and on 8 bits."""

import torch

from adjointdpm.attacks import Ball, ImageBall
from adjointdpm.attacks.bisection import smallest


def test_it_ends_within_the_last_interval_of_each_way():
    centre, x = torch.zeros(3, 2), torch.tensor([[0.0, 1.0], [0.0, 1.0], [0.0, -1.0]])
    edges, seen = torch.tensor([0.2, 0.9, 0.55]), []

    def succeeds(point, number):
        seen.append(number)
        return point[:, 1].abs() >= edges

    near = smallest(succeeds, x, centre, Ball(10.0, norm="linf"), halvings=9)
    sizes = near[:, 1].abs()
    assert bool((sizes >= edges).all())
    assert bool((sizes - edges < 2**-9).all())
    assert seen == list(range(9))


def test_what_it_returns_did_succeed_even_where_success_is_not_monotonic():
    """Between 0.3 and 0.6 the classifier errs, too, and between 0.6 and 0.8 it does not."""
    centre, x = torch.zeros(1, 1), torch.ones(1, 1)

    def succeeds(point, _):
        size = point[:, 0]
        return ((size > 0.3) & (size < 0.6)) | (size > 0.8)

    near = smallest(succeeds, x, centre, Ball(5.0, norm="linf"), halvings=6)
    assert bool(succeeds(near, 0))
    assert 0.3 < float(near) < 0.3 + 2**-6
    never = smallest(lambda point, _: torch.zeros(1, dtype=torch.bool), x, centre, Ball(5.0, norm="linf"))
    assert torch.equal(never, x)


def test_images_keep_8_bits_and_noise_its_shell():
    start = torch.full((1, 3, 4, 4), 100 / 255)
    found = start.clone()
    found[:, 0] += 8 / 255
    near = smallest(lambda x, _: x[:, 0].amax((1, 2)) > 104.5 / 255, found, start, ImageBall(8 / 255))
    assert torch.allclose(255 * near[:, 0], torch.tensor(105.0))
    assert torch.equal(near[:, 1:], start[:, 1:])
    draw = torch.Generator().manual_seed(0)
    start, ball = torch.randn(2, 50, generator=draw), Ball(0.8, shell=True)
    found = ball.project(start + torch.randn(2, 50, generator=draw), start)
    near = smallest(lambda x, _: ball.distance(x, start) > 0.25, found, start, ball, halvings=8)
    assert torch.allclose(near.norm(dim=1), start.norm(dim=1), rtol=1e-5)
    assert bool((ball.distance(near, start) < 0.26).all())
