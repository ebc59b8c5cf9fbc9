"""Progress bars on the error stream, with the time that is left."""

from typing import Any

from tqdm import tqdm

from .distributed import Processes

__all__ = ["progress"]


def progress(what: str, total: int, quiet: bool = False, done: int = 0) -> "tqdm[Any]":
    """Return a progress bar, which the first of several processes shows.

    Args:
        what: what is done, for the beginning of the line.
        total: the number of steps.
        quiet: show nothing.
        done: the number of steps that were done before.
    """
    hidden = quiet or not Processes.here().first
    return tqdm(total=total, initial=done, desc=what, ncols=90, disable=hidden)
