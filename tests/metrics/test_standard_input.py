"""Standard input is empty inside the block, and is the same as before after it."""

import os
import sys

import pytest

from adjointdpm.metrics.standard_input import closed_stdin


def test_input_ends_at_once_inside_and_is_given_back():
    before = sys.stdin
    with closed_stdin():
        assert os.read(0, 1) == b""
        with pytest.raises(EOFError):
            input()
    assert sys.stdin is before
