"""Other people's code without the terminal's input: it finds the end of a file where it would wait for ever."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

__all__ = ["closed_stdin"]


@contextmanager
def closed_stdin() -> Iterator[None]:
    """A block in which standard input is empty, for Python and below it."""
    kept, saved = sys.stdin, None
    with open(os.devnull) as empty:
        with suppress(OSError):  # there may be no standard input at all
            saved = os.dup(0)
            os.dup2(empty.fileno(), 0)
        sys.stdin = empty
        try:
            yield
        finally:
            sys.stdin = kept
            if saved is not None:
                os.dup2(saved, 0)
                os.close(saved)
