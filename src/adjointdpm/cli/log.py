"""What commands say on the error stream: warnings, and with --verbose what is done, each in a line of its own.

The package writes to the logger `adjointdpm` of Python's `logging`, and shows nothing itself: a program that uses it
decides. The command line shows its lines here, above any progress bar that is under way.
"""

import logging
import os
import sys
from typing import Any

__all__ = ["line", "listen", "show"]


def line(text: str) -> str:
    """Return a text as one printable line of the error stream."""
    return "adjointdpm: " + "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))


class _Lines(logging.Handler):
    """Writes each record as one line."""

    def emit(self, record: logging.LogRecord) -> None:
        first = os.environ.get("RANK", "0") == "0"  # of several processes, which all say the same
        if record.levelno < logging.WARNING and not first:
            return
        warning = "warning: " if record.levelno >= logging.WARNING else ""
        text = line(warning + record.getMessage())
        bars = sys.modules.get("tqdm")  # no bar is under way before it is imported
        if bars is None:
            print(text, file=sys.stderr)
        else:
            bars.tqdm.write(text, file=sys.stderr)


def listen() -> None:
    """Show the package's warnings, and those of Python, from now on."""
    logger = logging.getLogger("adjointdpm")
    if not any(isinstance(each, _Lines) for each in logger.handlers):
        logger.addHandler(_Lines())
    logger.propagate = False


def show(verbose: bool) -> None:
    """Show what is done, too, or no longer.

    Args:
        verbose: whether it is shown.
    """
    logging.getLogger("adjointdpm").setLevel(logging.DEBUG if verbose else logging.WARNING)


def warn(message: Any, *_: Any, **__: Any) -> None:
    """Show a warning of Python; takes the place of `warnings.showwarning`."""
    logging.getLogger("adjointdpm").warning("%s", message)
