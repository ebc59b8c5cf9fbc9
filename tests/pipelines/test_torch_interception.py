"""Draws are replaced in order, clamps of pixels are counted or left out, numbers keep their gradient."""

import pytest
import torch

import adjointdpm as adp
from adjointdpm.pipelines.torch_interception import Draws, Numbers, Watch, numbered


def test_draws_are_replaced_in_their_order_and_by_shape():
    first, second = torch.zeros(2, 3), torch.ones(2, 3)
    draws = Draws([first, second])
    with Watch(draws=draws):
        found = [torch.randn(2, 3), torch.randn(4), torch.randn_like(first), torch.randn(2, 3)]
    assert torch.equal(found[0], first)
    assert found[1].shape == (4,)
    assert torch.equal(found[2], second)
    assert not torch.equal(found[3], second)
    assert draws.left == 0
    assert draws.shapes == [(2, 3), (4,), (2, 3), (2, 3)]


def test_a_first_draw_of_another_shape_is_refused():
    with (
        Watch(draws=Draws([torch.zeros(1, 3)])),
        pytest.raises(adp.InputError, match=r"draws noise of shape \(2, 3\)"),
    ):
        torch.randn(2, 3)


@pytest.mark.parametrize("clamps", [True, False])
def test_the_last_clamp_of_pixels_is_counted_or_left_out(clamps):
    pixels = torch.tensor([-0.5, 0.2, 0.7, 1.5], requires_grad=True)
    with Watch(clamps=clamps) as watch:
        early = pixels.clamp(0, 1)  # a clamp within the steps is the pipeline's own
        watch.finished = True
        late, other = pixels.clamp(0, 1), pixels.clamp(0, 0.5)
    assert early.tolist() == pytest.approx([0, 0.2, 0.7, 1])
    assert other.tolist() == pytest.approx([0, 0.2, 0.5, 0.5])
    assert torch.equal(late, early if clamps else pixels)
    assert watch.clamped == (0.5 if clamps else 0)


def test_a_number_that_is_a_variable_keeps_its_gradient():
    scale = torch.tensor(3.0, requires_grad=True)
    given = numbered({"scale": scale, "steps": 4})
    with Numbers():
        full = torch.full((2,), given["scale"])
        made = torch.tensor(given["scale"] - 1)
    (gradient,) = torch.autograd.grad(full.sum() + made**2, scale)
    assert float(gradient) == 2 + 2 * (3 - 1)
    assert given["steps"] == 4
