"""Variables that hold other values for a while, without a trace in the graphs that were made before.

The storage of each leaf is exchanged and not written to, so that a graph that saved the leaf is still right once the
leaf has its own values back.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor

__all__ = ["holding"]


@contextmanager
def holding(variables: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> Iterator[None]:
    """Let leaves hold given values within this block; no graph that reads them may be used or kept there.

    Args:
        variables: named leaves.
        values: of some of them, by name, in their shapes and dtypes; they are not changed.

    Yields:
        None: nothing is passed to the block.
    """
    own = {name: variables[name].data for name in values}
    try:
        for name, value in values.items():
            variables[name].data = value
        yield
    finally:
        for name, value in own.items():
            variables[name].data = value
