"""Functions by name: a user's own metric, or an optional package's effect."""

import importlib
import os
import sys
from contextlib import suppress
from typing import Any

from .._types import InputError
from .standard_input import closed_stdin

__all__ = ["attribute", "user_function"]


def attribute(module: str, name: str, hint: str) -> Any:
    """A callable attribute of a module.

    Raises:
        InputError: either is missing, the module fails or exits while it is imported, or the attribute cannot
            be called; the message ends in the hint.
    """
    try:
        with closed_stdin():
            found = getattr(importlib.import_module(module), name, None)
    except ImportError as error:
        raise InputError(f"cannot import {module}: {error}; {hint}") from error
    except (Exception, SystemExit) as error:
        what = "exits" if isinstance(error, SystemExit) else "fails"
        about = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise InputError(f"cannot import {module}: it {what} while it is imported ({about})") from error
    if not callable(found):
        raise InputError(f"{module} has no function {name!r}; {hint}")
    return found


def user_function(name: str) -> Any:
    """What "module:function" names, the current folder being searched first, as by `python -m`.

    Importing a module runs it: name only code that you trust.

    Raises:
        InputError: it is not of that form, is not there, or fails while it is imported.
    """
    module, _, function = name.partition(":")
    if not module or not function:
        raise InputError(f"a function of your own is named module:function, but {name!r} was given")
    # The path of an installed command has the folder of its script in this place.
    with suppress(OSError):  # the current folder may have been deleted
        if not {"", os.getcwd()} & set(sys.path):
            sys.path.insert(0, os.getcwd())
    return attribute(module, function, "start the command in the folder of your module, or install it")
