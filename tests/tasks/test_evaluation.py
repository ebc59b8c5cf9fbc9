"""Rates and means with their intervals, against closed forms."""

import pytest
import torch

import adjointdpm as adp
from adjointdpm.metrics import Pixels
from adjointdpm.tasks.evaluation import Mean, Rate, change, check_on_gray, predict, recognized
from tests.tiny.tasks import mixture_sampler


@pytest.mark.parametrize(("hits", "of"), [(0, 10), (3, 10), (10, 10), (170, 400)])
def test_wilsons_interval_solves_its_equation(hits, of):
    """Its ends are the p0 with (p - p0)^2 = z^2 p0 (1 - p0) / n."""
    p, z = hits / of, 1.959963984540054
    for end in Rate(hits, of).interval:
        assert (p - end) ** 2 == pytest.approx(z**2 * end * (1 - end) / of, abs=1e-12)


def test_nothing_of_nothing_may_be_anything():
    assert Rate(0, 0).interval == (0, 1)
    assert Rate(0, 0).share == 0
    assert Rate.of_mask(torch.tensor([True, False, True])) == Rate(2, 3)


def test_the_interval_of_a_mean_covers_it_in_95_of_100_draws():
    generator = torch.Generator().manual_seed(0)
    found = [Mean.of(torch.randn(50, generator=generator) + 2) for _ in range(400)]
    covered = sum(each.low <= 2 <= each.high for each in found) / len(found)
    assert 0.92 < covered < 0.98
    assert Mean.of(torch.ones(1)).low == -float("inf")


def test_predictions_do_not_depend_on_the_parts():
    classifier = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3)).double()
    images = torch.rand(7, 3, 2, 2, dtype=torch.float64)
    whole = predict(classifier, images)
    assert not whole.requires_grad
    assert torch.allclose(predict(classifier, images, batch=2), whole, rtol=1e-14)


def test_a_judge_sees_the_saved_image_and_no_judge_is_no_rate():
    """An image of 1.2 is saved as 1, so a judge of brightness gives it the label of 1."""
    judge = torch.nn.Module()
    judge.forward = lambda images: torch.stack(
        [1.1 - images.mean((1, 2, 3)), images.mean((1, 2, 3)) - 1.1], 1
    )
    images = torch.tensor([0.2, 1.2])[:, None, None, None].expand(2, 3, 2, 2)
    assert recognized(judge, images, torch.tensor([0, 1])) == Rate(1, 2)
    assert recognized(judge, images, 0) == Rate(2, 2)
    assert recognized(None, images, 0) is None
    assert recognized(judge, images, None) is None


def test_metrics_are_tried_before_the_work():
    sampler = mixture_sampler()
    check_on_gray(sampler, ["a cat"], Pixels(), lambda images: images.mean((1, 2, 3)))
    with pytest.raises(adp.InputError, match="metric"):
        check_on_gray(sampler, ["a cat"], Pixels(), lambda images: images.detach().mean((1, 2, 3)))


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (2.0, 0.5, "75 % lower"),
        (1.0, 1.24, "24 % higher"),
        (1.0, 0.001, "99.9 % lower"),
        (1.0, 0.0, "100 % lower"),
        (1.0, 1.001, "unchanged"),
        (0.0, 0.3, "0.3 after 0"),
        (-1.0, -2.0, "-2 after -1"),
        (None, 1.0, "not measured"),
    ],
)
def test_a_change_is_said_with_its_direction(before, after, words):
    assert change(before, after) == words
