"""Variables hold other values for a while: what was before comes back, and graphs stay right."""

import pytest
import torch

from adjointdpm.optimization.holding import holding


def test_own_values_come_back_after_an_error():
    leaf = torch.ones(2, requires_grad=True)
    other = torch.zeros(2)

    def fail():
        with holding({"leaf": leaf}, {"leaf": other}):
            assert leaf.tolist() == [0.0, 0.0]
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert leaf.tolist() == [1.0, 1.0]
    assert other.tolist() == [0.0, 0.0]


def test_a_graph_from_before_differentiates_the_values_that_it_saw():
    leaf = torch.tensor([3.0], requires_grad=True)
    square = leaf * leaf  # it saves the leaf
    with holding({"leaf": leaf}, {"leaf": torch.tensor([5.0])}):
        assert float(leaf.detach() * 2) == 10
    (found,) = torch.autograd.grad(square, leaf)
    assert found.tolist() == [6.0]
