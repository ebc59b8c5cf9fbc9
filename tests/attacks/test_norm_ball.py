"""Balls around a noise or an image: the nearest point, and what is no ball."""

import pytest
import torch
from torch import nn

import adjointdpm as adp
from adjointdpm.attacks import Ball, ImageBall

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


# --- balls of images


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_projection_of_an_image_is_the_nearest_point_of_the_ball_within_the_range(norm):
    torch.manual_seed(0)
    ball = ImageBall(0.3, norm)
    centre = torch.tensor([[0.5, 0.4, 0.6]], dtype=torch.float64)  # the ball touches no bound
    x = centre + torch.randn(1, 3, dtype=torch.float64)
    near = ball.project(x, centre)
    assert float(ball.distance(near, centre)) <= 0.3 + 1e-12
    others = ball.project(centre + torch.randn(20000, 3, dtype=torch.float64), centre.expand(20000, 3))
    assert float((others - x).norm(dim=1).min()) >= float((near - x).norm()) - 1e-12
    edge = torch.tensor([[0.0, 1.0, 0.1]], dtype=torch.float64)
    away = ball.project(edge + 5 * torch.randn(500, 3, dtype=torch.float64), edge.expand(500, 3))
    assert float(away.min()) >= 0
    assert float(away.max()) <= 1
    assert float(ball.distance(away, edge.expand(500, 3)).max()) <= 0.3 + 1e-12


@pytest.mark.parametrize(("norm", "radius"), [("linf", 8 / 255), ("linf", 0.03), ("l2", 0.5)])
def test_images_of_8_bits_stay_in_the_ball(norm, radius):
    torch.manual_seed(0)
    ball, centre = ImageBall(radius, norm), torch.randint(0, 256, (4, 3, 8, 8)) / 255
    x = ball.random(torch.randn(4, 3, 8, 8), centre)
    found = ball.finished(x, centre)
    assert torch.equal(found, (255 * found).round() / 255)
    assert float(ball.distance(found, centre).max()) <= radius * (1 + 1e-5)
    assert float((found - x).abs().max()) <= 1 / 255 + 1e-6
    corner = ball.project(centre + 1, centre)  # whole levels are kept, rounding errors or not
    if radius == 8 / 255:
        assert torch.equal(
            (255 * ball.finished(corner, centre)).round(), (255 * centre + 8).round().clamp(max=255)
        )


def test_random_points_fill_a_cube_and_lie_on_a_sphere():
    torch.manual_seed(0)
    centre = torch.full((2000, 3), 0.5)
    cube = ImageBall(0.1).random(torch.randn(2000, 3), centre) - centre
    assert float(cube.std()) == pytest.approx(0.1 / 3**0.5, rel=0.03)  # uniform
    sphere = ImageBall(0.1, "l2").random(torch.randn(2000, 3), centre) - centre
    assert torch.allclose(sphere.norm(dim=1), torch.tensor(0.1))


@pytest.mark.parametrize(("arguments", "word"), [((0.0,), "above 0"), ((0.1, "l1"), "l2 or linf")])
def test_balls_of_images_that_are_none(arguments, word):
    with pytest.raises(adp.InputError, match=word):
        ImageBall(*arguments)
