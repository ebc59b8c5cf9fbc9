"""What is drawn: maps in order of brightness, curves at the right places, and texts that are never markup."""

import re

import pytest
import torch

from adjointdpm.studio.drawing import colored, curve, figures, images, status


def test_larger_is_brighter():
    color = colored(torch.linspace(0, 1, 101)[None]).float()
    light = torch.tensor([0.2126, 0.7152, 0.0722]) @ color[:, 0]
    assert bool((light.diff() > 0).all())
    assert tuple(color.shape) == (3, 1, 101)


def points(svg):
    return [tuple(map(float, each.split(","))) for each in re.search(r'points="([^"]*)"', svg)[1].split()]


def test_a_curve_falls_where_values_fall_and_grows_to_the_right():
    found = points(curve([3.0, 2.0, 1.0], steps=4))
    (x0, y0), (x1, y1), (x2, y2) = found
    assert x1 - x0 == pytest.approx(x2 - x1)
    assert y1 - y0 == pytest.approx(y2 - y1, abs=0.2)
    assert y2 > y0  # down on a screen
    whole = points(curve([0.0] * 5, steps=4))
    assert whole[-1][0] - whole[0][0] == pytest.approx(2 * (x2 - x0), abs=0.2)
    assert "metric 3 at step 0, 1 at step 2 of 4" in curve([3.0, 2.0, 1.0], steps=4)


@pytest.mark.parametrize("values", [[0.0], [5.0, 5.0], [1e-30, 2e-30], [-1e30, 1e30]])
def test_any_finite_values_have_a_curve_inside_the_drawing(values):
    for x, y in points(curve(values, steps=1)):
        assert 0 <= x <= 600
        assert 0 <= y <= 190
    assert curve([], 3) == ""


def test_texts_are_escaped():
    evil = '<img src=x onerror="alert(1)">'
    image = torch.zeros(3, 2, 2, dtype=torch.uint8)
    for found in (images({evil: image}), figures({evil: evil}), status(evil, "failed")):
        assert "<img src=x" not in found
        assert "&lt;img src=x onerror=&quot;" in found
