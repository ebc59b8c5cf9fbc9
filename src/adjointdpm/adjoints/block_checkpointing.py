"""The blocks of a network, executed one by one through diffusers' own switch for gradient checkpointing."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from .._types import Run, direct

__all__ = ["has_blocks", "in_blocks"]

_SWITCH = threading.RLock()  # a network has one switch for all threads


def has_blocks(network: Any) -> bool:
    """Whether a network has the switch, and its user has not turned it on."""
    able = getattr(network, "_supports_gradient_checkpointing", False)
    return able and not network.is_gradient_checkpointing


@contextmanager
def in_blocks(network: Any, run: Run) -> Iterator[None]:
    """A context in which a network's blocks are executed by `run`.

    It changes nothing where `run` is `direct`, or where a user has turned the switch on.

    Args:
        network: the network.
        run: executes a block, run(block, *arguments).

    Yields:
        nothing.
    """
    if run is direct:
        yield
        return
    with _SWITCH:
        switch = has_blocks(network)
        if switch:
            network.enable_gradient_checkpointing(_outermost(run))
        try:
            yield
        finally:
            if switch:
                network.disable_gradient_checkpointing()


def _outermost(run: Run) -> Callable[..., Any]:
    """Make a function that executes blocks by `run`, and blocks inside of them directly.

    The switch is off when a block is recomputed, so a block inside must not have been checkpointed the first time.

    Args:
        run: executes a block.

    Returns:
        the function.
    """
    inside = False

    def each(block: nn.Module, *args: Any) -> Any:
        nonlocal inside
        if inside:
            return block(*args)
        inside = True
        try:
            return run(block, *args)
        finally:
            inside = False

    return each
