"""Ctrl-C that waits for the end of a block, so that no half-made step is ever saved."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["uninterrupted"]


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold back Ctrl-C until the block has ended."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals go to the main thread only
        return
    came: list[int] = []

    def later(number: int, frame: Any) -> None:
        came.append(number)

    before = signal.signal(signal.SIGINT, later)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        signal.raise_signal(signal.SIGINT)
