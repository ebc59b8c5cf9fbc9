"""Functions by name: a user's own metric, or an optional package's effect."""

import importlib
from typing import Any

from .._types import InputError

__all__ = ["attribute", "user_function"]


def attribute(module: str, name: str, hint: str) -> Any:
    """A callable attribute of a module.

    Raises:
        InputError: either is missing, or it cannot be called; the message ends in the hint.
    """
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ImportError as error:
        raise InputError(f"cannot import {module}: {error}; {hint}") from error
    if not callable(found):
        raise InputError(f"{module} has no function {name!r}; {hint}")
    return found


def user_function(name: str) -> Any:
    """What "module:function" names. Importing a module runs it: name only code that you trust.

    Raises:
        InputError: it is not of that form, or is not there.
    """
    module, _, function = name.partition(":")
    if not module or not function:
        raise InputError(f"a function of your own is named module:function, but {name!r} was given")
    return attribute(module, function, "start the command in the folder of your module, or install it")
