"""States between the nodes of a grid: cubics come back exactly, and evaluations in their order."""

import pytest
import torch

import adjointdpm as adp
from adjointdpm.adjoints.interpolation import Evaluations, Interpolation


def at(tau):
    (time,) = adp.EDMSchedule().at(torch.tensor([tau], dtype=torch.float64))  # tau is t there
    return time


def cubic(tau):
    return torch.tensor([tau**3 - 2 * tau, 4.0 - tau**2], dtype=torch.float64)


def slope(tau):
    return torch.tensor([3 * tau**2 - 2, -2 * tau], dtype=torch.float64)


def test_a_cubic_is_interpolated_exactly_and_the_last_interval_as_a_quadratic():
    kept = Interpolation()
    for tau in (3.0, 2.2, 1.0):
        kept.add_state(cubic(tau), at(tau))
        if tau > 1:
            kept.add_slope(slope(tau), cubic(tau))
    torch.testing.assert_close(kept(at(2.7)), cubic(2.7), rtol=1e-12, atol=1e-12)
    assert torch.equal(kept(at(2.2)), cubic(2.2))
    assert float(kept(at(1.4))[1]) == pytest.approx(float(cubic(1.4)[1]), rel=1e-12)
    assert float((kept(at(1.4)) - cubic(1.4))[0].abs()) > 1e-3
    assert torch.equal(kept.slope(at(3.0)), slope(3.0))
    with pytest.raises(LookupError, match=r"no slope was evaluated at t = 2\.5"):
        kept.slope(at(2.5))


def test_evaluations_come_back_in_their_order_and_begin_again():
    kept = Evaluations()
    for tau in (3.0, 2.0):
        kept.add_slope(slope(tau), cubic(tau))
    for tau in (3.0, 2.0, 3.0):
        assert torch.equal(kept(at(1.0)), cubic(tau))
