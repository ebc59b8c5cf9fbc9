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
    """Import a callable attribute of a module, with standard input closed.

    Args:
        module: the module's name, as in an import.
        name: the attribute's name.
        hint: advice for the user, with which the message of an error ends.

    Returns:
        the attribute.

    Raises:
        InputError: the module or the attribute is missing, the module fails or exits while it is imported, or the
            attribute cannot be called.
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
    """Import the function that "module:function" names; the current folder is searched first, as by `python -m`.

    Importing a module runs it, so name only code that you trust.

    Args:
        name: the module's name, a colon and the function's name.

    Returns:
        the function, or another callable.

    Raises:
        InputError: the name is not of that form, does not exist, or its module fails while it is imported.

    Examples:
        >>> import adjointdpm as adp
        >>> adp.metrics.user_function("math:hypot")(3, 4)
        5.0
    """
    module, _, function = name.partition(":")
    if not module or not function:
        raise InputError(f"a function of your own is named module:function, but {name!r} was given")
    # The path of an installed command has the folder of its script in this place.
    with suppress(OSError):  # the current folder may have been deleted
        if not {"", os.getcwd()} & set(sys.path):
            sys.path.insert(0, os.getcwd())
    return attribute(module, function, "start the command in the folder of your module, or install it")
