"""The learning rate of a loop over its steps, in closed form."""

import pytest

import adjointdpm as adp
from adjointdpm.optimization.task import LoopSettings, RunOptions


def test_the_rate_falls_as_its_decay_says_after_the_warmup():
    assert [LoopSettings(steps=5, decay="linear", warmup=1).rate(k) for k in range(6)] == pytest.approx(
        [0.5, 1, 0.75, 0.5, 0.25, 0]
    )
    assert [LoopSettings(steps=3, decay="cosine").rate(k) for k in range(4)] == pytest.approx(
        [1, 0.75, 0.25, 0]
    )
    assert {LoopSettings(steps=3).rate(k) for k in range(4)} == {1.0}


def test_an_earlier_run_is_continued_or_written_over_and_not_both():
    assert (RunOptions().earlier, RunOptions(resume=True).earlier, RunOptions(overwrite=True).earlier) == (
        False,
        True,
        None,
    )
    with pytest.raises(adp.InputError, match=r"resume=True goes on .* and overwrite=True replaces it"):
        RunOptions(resume=True, overwrite=True)
