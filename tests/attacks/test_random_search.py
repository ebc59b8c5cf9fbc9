"""Random points stay in the ball, more of them are better, and they fall short of the closed form."""

import torch

from adjointdpm.attacks import ImageBall, random_search
from adjointdpm.attacks.losses import margin
from tests.attacks.noisy import Linear, Noisy, images


def test_the_best_of_more_points_is_better_and_short_of_the_optimum():
    model, x, labels, ball = Linear(classes=2), images(), torch.zeros(3, dtype=torch.long), ImageBall(0.1)
    few, many = (random_search(model, x, labels, ball, n) for n in (2, 40))
    w = model.weight[0] - model.weight[1]
    least = margin(model(x), labels) - 0.1 * w.abs().sum()
    a, b = (margin(model(each), labels) for each in (few, many))
    assert bool((b <= a).all())
    assert bool((b < a).any())
    assert bool((least < b).all())
    assert float(ball.distance(many, x).max()) <= 0.1
    assert torch.equal(many, (255 * many).round() / 255)


def test_it_is_repeated_to_the_bit():
    x, labels = images(), torch.tensor([0, 1, 2])
    first, again = (
        random_search(Noisy(), x, labels, ImageBall(0.1), 3, draws=2, batch=2) for _ in range(2)
    )
    assert torch.equal(first, again)
