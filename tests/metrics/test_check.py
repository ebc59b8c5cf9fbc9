"""A metric that cannot be differentiated is refused before anything is sampled."""

import pytest
import torch

import adjointdpm as adp
from adjointdpm.metrics.check import check_metric


@pytest.mark.parametrize(
    ("metric", "error", "message"),
    [
        (lambda x: x.mean(), adp.InputError, r"here a tensor of shape \(2,\), but returned \(\)"),
        (lambda x: x.detach().mean((1, 2, 3)), adp.InputError, "the metric's result has no gradient"),
        (lambda x: x.mean((1, 2, 3)) * torch.inf, adp.NonFiniteError, "which is not finite"),
        (lambda x: 1 / 0, adp.InputError, r"the metric fails .*ZeroDivisionError: division by zero"),
    ],
)
def test_what_is_wrong_with_a_metric_is_said(metric, error, message):
    with pytest.raises(error, match=message):
        check_metric(metric, (3, 4, 4), 2, torch.zeros(1))
    check_metric(lambda x: x.mean((1, 2, 3)), (3, 4, 4), 2, torch.zeros(1))
