"""Ctrl-C and SIGTERM: the first one ends a run in order, and the others find it ending.

    held()         a signal waits for the end of the block, so that no half-made step is ever saved
    stop_once()    in the block, the first signal raises an exception, and later ones are ignored
    end_once()     the same until the program ends
    ending()       from here on all are ignored

Handlers can only be set in the main thread, where Python delivers signals; in others these do nothing. A signal that
a parent shell has set to be ignored stays ignored, and handlers of the program's own stay in force.
"""

import atexit
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["Interrupted", "end_once", "ending", "held", "stop_once"]

_BOTH = (signal.SIGINT, signal.SIGTERM)


class Interrupted(BaseException):
    """A signal came; like KeyboardInterrupt, which libraries for command lines handle in silence.

    code    what the program should exit with, as shells have it: 130 after Ctrl-C, 143 after SIGTERM
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.code = 128 + number


class _First:
    """Raises an exception for the first signal, and again after a second, as Python drops what is raised in `__del__`.

    Args:
        interrupt: what Ctrl-C raises.
    """

    def __init__(self, interrupt: Callable[[int], BaseException]) -> None:
        self.interrupt, self.raised, self.ending = interrupt, -math.inf, False

    def __call__(self, number: int, frame: Any) -> None:
        if self.ending or time.monotonic() - self.raised < 1:
            return
        self.raised = time.monotonic()
        raise self.interrupt(number) if number == signal.SIGINT else Interrupted(number)


def _main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _install(handler: _First, terminate: bool = True) -> dict[int, Any]:
    """Return the former handlers by signal, of the signals whose handlers were Python's own and are now replaced."""
    own: dict[int, Any] = {signal.SIGINT: signal.default_int_handler}
    if terminate:
        own[signal.SIGTERM] = signal.SIG_DFL
    before = {number: each for number, each in own.items() if signal.getsignal(number) == each}
    for number in before:
        signal.signal(number, handler)
    return before


@contextmanager
def stop_once(terminate: bool = True) -> Iterator[None]:
    """Let the first Ctrl-C raise KeyboardInterrupt and the first SIGTERM `Interrupted`; ignore what comes later.

    Args:
        terminate: whether SIGTERM is handled, too; otherwise it ends the program at once, as it does by default.
    """
    if not _main_thread():
        yield
        return
    before = _install(_First(lambda number: KeyboardInterrupt()), terminate)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end_once() -> None:
    """Let the first of both signals raise `Interrupted`, until the program has ended: for the command line."""
    if not _main_thread():
        return
    for number in _install(_First(Interrupted)):
        # Python's own handlers are back while it shuts down, and would turn the exit code into a signal.
        atexit.register(signal.signal, number, signal.SIG_IGN)


def ending() -> None:
    """The exception was caught, and the run is coming to its end: ignore all that comes from now on."""
    for number in _BOTH:
        handler = signal.getsignal(number)
        if isinstance(handler, _First):
            handler.ending = True


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
