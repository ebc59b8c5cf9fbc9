"""Standard input as an empty file, so that code of other authors that reads from it does not wait for ever."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

__all__ = ["closed_stdin"]


@contextmanager
def closed_stdin() -> Iterator[None]:
    """Make standard input empty within a block, for Python and for native code.

    Use it around calls of code that may read from the terminal. It acts on the whole process.

    Yields:
        None.
    """
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
