"""The learning rate of a loop over its steps, in closed form."""

import pytest

from adjointdpm.optimization.task import LoopSettings


def test_the_rate_falls_as_its_decay_says_after_the_warmup():
    assert [LoopSettings(steps=5, decay="linear", warmup=1).rate(k) for k in range(6)] == pytest.approx(
        [0.5, 1, 0.75, 0.5, 0.25, 0]
    )
    assert [LoopSettings(steps=3, decay="cosine").rate(k) for k in range(4)] == pytest.approx(
        [1, 0.75, 0.25, 0]
    )
    assert {LoopSettings(steps=3).rate(k) for k in range(4)} == {1.0}
