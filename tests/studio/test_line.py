"""The line: turns in the order of arrival, places that are left, and places that nobody asks about."""

import threading
import time

import pytest

import adjointdpm as adp
from adjointdpm.studio.line import Line


def test_turns_come_in_the_order_of_arrival():
    line = Line()
    first, second, third = line.join(), line.join(), line.join()
    assert [line.before(each) for each in (first, second, third)] == [0, 1, 2]
    line.leave(second)
    assert first in line
    assert second not in line
    assert line.before(second) is None
    assert line.before(third) == 1
    line.leave(first)
    line.leave(first)
    assert line.before(third) == 0
    assert len(line) == 1


def test_whoever_waits_goes_on_as_soon_as_the_one_before_has_left():
    line = Line()
    first, second = line.join(), line.join()
    assert line.before(first) == 0
    timer = threading.Timer(0.2, line.leave, [first])
    timer.start()
    began = time.monotonic()
    assert line.before(second, seconds=20) == 0
    assert time.monotonic() - began < 10
    timer.join()


def test_a_full_line_is_an_error():
    line = Line(most=2)
    line.join(), line.join()
    with pytest.raises(adp.InputError, match="2 runs are waiting"):
        line.join()


def test_a_place_that_nobody_asks_about_is_given_up_but_not_one_that_works():
    now = 0.0
    line = Line(patience=30, clock=lambda: now)
    works, gone, waits = line.join(), line.join(), line.join()
    assert line.before(works) == 0
    now = 29.0
    assert line.before(waits) == 2
    now = 58.0
    assert line.before(waits) == 1
    assert line.before(gone) is None
    now = 1000.0
    assert line.before(works) == 0
