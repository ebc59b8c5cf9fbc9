"""Progress bars on the error stream, with the time that is left and the memory that is used."""

from typing import Any

from tqdm import tqdm

from .distributed import Processes

__all__ = ["progress", "size"]


def progress(what: str, total: int, quiet: bool = False, done: int = 0) -> "tqdm[Any]":
    """Return a progress bar, which the first of several processes shows.

    Args:
        what: what is done, for the beginning of the line.
        total: the number of steps.
        quiet: show nothing.
        done: the number of steps that were done before.
    """
    hidden = quiet or not Processes.here().first
    return tqdm(total=total, initial=done, desc=what, dynamic_ncols=True, disable=hidden)


def size(number: int) -> str:
    """Return a number of bytes as a short text, such as 3.5GiB."""
    value, unit = float(number), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.0f}{unit}" if value >= 100 else f"{value:.3g}{unit}"
