"""Ctrl-C and SIGTERM: the first one ends a run in order, and the others find it ending.

    held()         a signal waits for the end of the block, so that no half-made step is ever saved
    stop_once()    in the block, the first signal raises an exception, and later ones are ignored
    end_once()     the same until the program ends

Handlers can only be set in the main thread, where Python delivers signals; in others these do nothing. A signal that
a parent shell has set to be ignored stays ignored, and handlers of the program's own stay in force.
"""

import atexit
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["Terminated", "end_once", "held", "stop_once"]

_BOTH = (signal.SIGINT, signal.SIGTERM)


class Terminated(SystemExit):
    """SIGTERM: ends the program with the exit code that shells give for it, 143, unless it is caught."""

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)


def _first(number: int, frame: Any) -> None:
    # Not SIG_IGN: Python prints an error if the next signal comes while it is being set.
    for each in _BOTH:
        if callable(signal.getsignal(each)):
            signal.signal(each, _later)
    raise KeyboardInterrupt if number == signal.SIGINT else Terminated()


def _later(number: int, frame: Any) -> None:
    """The first one is being dealt with."""


def _main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _install(terminate: bool) -> dict[int, Any]:
    """Handle the signals whose handlers are Python's own; returns those, by signal."""
    own = {signal.SIGINT: signal.default_int_handler}
    if terminate:
        own[signal.SIGTERM] = signal.SIG_DFL
    before = {number: handler for number, handler in own.items() if signal.getsignal(number) == handler}
    for number in before:
        signal.signal(number, _first)
    return before


@contextmanager
def stop_once(terminate: bool = True) -> Iterator[None]:
    """Let the first Ctrl-C raise KeyboardInterrupt and the first SIGTERM `Terminated`; ignore what comes later.

    Args:
        terminate: whether SIGTERM is handled, too; otherwise it ends the program at once, as it does by default.
    """
    if not _main_thread():
        yield
        return
    before = _install(terminate)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end_once() -> None:
    """Handle signals as `stop_once` does, until the program has ended: for the command line."""
    if not _main_thread():
        return
    for number in _install(terminate=True):
        # Python's own handlers are back while it shuts down, and would turn the exit code into a signal.
        atexit.register(signal.signal, number, signal.SIG_IGN)


@contextmanager
def held() -> Iterator[None]:
    """Hold back signals until the block has ended; the first that came is raised then."""
    if not _main_thread():
        yield
        return
    came: list[int] = []

    def later(number: int, frame: Any) -> None:
        came.append(number)

    handled: dict[int, Callable[[int, Any], Any]] = {}
    for number in _BOTH:
        handler = signal.getsignal(number)
        if callable(handler):
            handled[number] = handler
            signal.signal(number, later)
    try:
        yield
    finally:
        for number, handler in handled.items():
            signal.signal(number, handler)
    if came:
        signal.raise_signal(came[0])
