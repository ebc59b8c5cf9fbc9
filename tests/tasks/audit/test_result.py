"""Intervals of a rate."""

import pytest

from adjointdpm.tasks.evaluation import Rate

# --- what it reports


def test_wilson_intervals():
    assert Rate(0, 10).interval == pytest.approx((0, 0.27753), abs=1e-5)
    assert Rate(9, 10).interval == pytest.approx((0.59585, 0.98212), abs=1e-5)
    assert Rate(0, 0).interval == (0, 1)
