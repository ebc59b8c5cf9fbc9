"""Numbers that settings and flags take: finite, and within a range."""

import math
from numbers import Real
from typing import Any

from ._types import InputError

__all__ = ["in_range"]


def in_range(
    name: str,
    value: Any,
    low: float | int = -math.inf,
    high: float | int = math.inf,
    *,
    open_low: bool = False,
) -> None:
    """Check that a number is finite and low <= value <= high.

    Args:
        name: of the setting or flag, for the message.
        value: what was given.
        low, high: the range.
        open_low: whether `low` itself is outside.
    Raises:
        InputError: it is not a number, is NaN or infinite, or lies outside the range.
    """
    if isinstance(value, Real) and not isinstance(value, bool):
        number: Any = value  # a whole number of any size compares exactly, as a float it would overflow
        above = low < number if open_low else low <= number
        if -math.inf < number < math.inf and above and number <= high:
            return
    parts = [f"{'above' if open_low else 'at least'} {low}"] if math.isfinite(low) else []
    parts += [f"at most {high}"] if math.isfinite(high) else []
    raise InputError(f"{name} must be {' and '.join(parts) or 'a finite number'}, but is {str(value)[:40]}")
