"""Balls around a noise: the nearest point, and what is no ball."""

import pytest
import torch
from torch import nn

import adjointdpm as adp
from adjointdpm.tasks import Ball

# --- balls


@pytest.mark.parametrize("ball", [Ball(0.3), Ball(0.3, shell=True), Ball(0.3, "linf")])
def test_projection_is_the_nearest_point(ball):
    torch.manual_seed(0)
    centre = torch.randn(1, 3, dtype=torch.float64)
    x = centre + torch.randn(1, 3, dtype=torch.float64)
    near = ball.project(x, centre)
    assert float(ball.distance(near, centre)) <= ball.radius + 1e-12
    assert float((ball.project(near, centre) - near).abs().max()) < 1e-12
    others = ball.project(centre + torch.randn(20000, 3, dtype=torch.float64), centre.expand(20000, 3))
    if ball.shell:
        assert float((others.norm(dim=1) - centre.norm()).abs().max()) < 1e-12
        # Along the sphere, the nearest is the one of the smallest angle.
        angles = nn.functional.cosine_similarity(others, x.expand_as(others))
        assert float(angles.max()) <= float(nn.functional.cosine_similarity(near, x)) + 1e-12
    else:
        assert float((others - x).norm(dim=1).min()) >= float((near - x).norm()) - 1e-12
    inside = centre + 1e-3 * torch.ones_like(centre)
    if not ball.shell:
        assert float((ball.project(inside, centre) - inside).abs().max()) < 1e-15


def test_the_rim_of_the_shell_is_as_far_as_the_ball_goes():
    centre = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    rim = Ball(0.5, shell=True).project(torch.tensor([[-30.0, 1.0]], dtype=torch.float64), centre)
    assert float((rim - centre).norm()) == pytest.approx(0.5 * 5)
    assert float(rim.norm()) == pytest.approx(5)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [((0.0,), "above 0"), ((0.1, "l1"), "l2 or linf"), ((0.1, "linf", True), "shell")],
)
def test_balls_that_are_none(arguments, word):
    with pytest.raises(adp.InputError, match=word):
        Ball(*arguments)
