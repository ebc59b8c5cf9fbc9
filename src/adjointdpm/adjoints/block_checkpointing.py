"""A network's blocks, each run as a policy says, by the network's own switch for checkpointing."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from .._types import Run, direct

__all__ = ["has_blocks", "in_blocks"]

_SWITCH = threading.RLock()  # a network has one switch for all threads


def has_blocks(network: Any) -> bool:
    """Whether the network can be asked for its blocks, and its user has not asked for them already."""
    able = getattr(network, "_supports_gradient_checkpointing", False)
    return able and not network.is_gradient_checkpointing


@contextmanager
def in_blocks(network: Any, run: Run) -> Iterator[None]:
    """A context in which `run` runs the network's blocks; nothing where it is `direct`, or a user's switch is on."""
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
    """`run` for a network's blocks, but not for blocks within them.

    The switch is off again when a block is recomputed; it must then save what it saved the first time.
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
