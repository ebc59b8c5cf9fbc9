"""Bytes of tensors alive, measured without the library's own accounts."""

import gc
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class LiveBytes(TorchDispatchMode):
    """Follows every storage made inside it from birth to death; `peak` is the most alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        # A view of a tensor from outside makes no storage.
        given = {
            each.untyped_storage()._cdata
            for each in tree_iter((args, kwargs))
            if isinstance(each, torch.Tensor)
        }
        for tensor in tree_iter(out):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in given:
                self._follow(tensor.untyped_storage())
        return out

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def held_by(make: Callable[[], Any]) -> tuple[Any, int]:
    """A result, and the bytes that are alive because of it: what waits for a backward pass."""
    with LiveBytes() as live:
        made = make()
    gc.collect()
    return made, live.now
