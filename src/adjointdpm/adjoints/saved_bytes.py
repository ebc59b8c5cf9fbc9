"""Counting the bytes that autograd saves for the backward pass: deterministic, on any device."""

import math
import weakref
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from .._types import AdjointDPMError, InputError

__all__ = ["Address", "BudgetExceededError", "SavedBytes", "Taken", "address", "addresses"]

Address = tuple[torch.device, int]

# Returns the hooks that are already in force (torch >= 2.8). Without it our hooks would replace those of
# torch.utils.checkpoint or of the user's save_on_cpu, instead of counting and passing the tensors on to them.
_hooks_in_force = getattr(getattr(torch._C, "_autograd", None), "_top_saved_tensors_default_hooks", None)


class BudgetExceededError(AdjointDPMError):
    """One graph alone exceeds the budget.

    Args:
        graph: the size of the graph in bytes, or of the part that was made.
    """

    def __init__(self, graph: int) -> None:
        super().__init__(f"one graph needs {graph} bytes")
        self.graph = graph


class SavedBytes(saved_tensors_hooks):
    """A context that counts the bytes of the distinct storages saved for backward inside it.

    It passes every tensor on to the hooks already in force, so a checkpoint remains a checkpoint. The figure is then
    what the graph *would* hold. The result is in `bytes`, which is None on a torch that cannot compose hooks.

    Args:
        shared: the addresses of tensors that exist anyway (weights, conditioning) and are not counted; see `addresses`.
        limit: the most bytes that may be saved.

    Raises:
        BudgetExceededError: as soon as more is saved.
    """

    def __init__(self, shared: AbstractSet[Address], limit: float = math.inf) -> None:
        self._limit, self._shared = limit, shared
        self._alive: dict[Any, Any] = {}
        self.bytes: int | None = None
        if _hooks_in_force is None:
            return
        outer = _hooks_in_force(False)
        self.bytes = 0

        def pack(tensor: Tensor) -> Any:
            self._count(tensor)
            if outer:
                return outer[0](tensor)
            # Detached, since a node that saves its own output would keep itself alive.
            return tensor if tensor.is_leaf else tensor.detach()

        def unpack(packed: Any) -> Tensor:
            return outer[1](packed) if outer else packed

        super().__init__(pack, unpack)

    def __enter__(self) -> "SavedBytes":  # type: ignore[override]
        if self.bytes is not None:
            super().__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        if self.bytes is not None:
            super().__exit__(*error)
            # Both refer to this object: a reference cycle that would hold the graph of a checkpoint's hooks.
            del self.pack_hook, self.unpack_hook
            self._alive.clear()

    def _count(self, tensor: Tensor) -> None:
        # Zero-dimensional coefficients lie on the CPU and are not counted.
        at = address(tensor)
        if tensor.ndim == 0 or at in self._shared or at in self._alive:
            return
        # Under a checkpoint nothing is kept, so an address may soon belong to another storage.
        tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor  # pyright: ignore
        storage = tensor.untyped_storage()
        self._alive[at] = weakref.ref(storage, lambda _: self._alive.pop(at, None))
        self.bytes = (self.bytes or 0) + storage.nbytes()
        if self.bytes > self._limit:
            raise BudgetExceededError(self.bytes)


class _Saved:
    """A tensor that a graph saves; it lives as long as its node."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor if tensor.is_leaf else tensor.detach()  # detached for the reason above


class Taken(saved_tensors_hooks):
    """A context for a graph that is made, searched and dropped; it detects tensors of the graph that stay alive.

    The graph does not reach a user's hooks (save_on_cpu), since no backward pass will need it.
    """

    def __init__(self) -> None:
        alive = self._alive = weakref.WeakSet[_Saved]()

        def pack(tensor: Tensor) -> _Saved:
            saved = _Saved(tensor)
            alive.add(saved)
            return saved

        super().__init__(pack, lambda saved: saved.tensor)

    def refuse(self) -> None:
        """Raise if a tensor of the graph is still held after the graph's result has been freed.

        Raises:
            InputError: it is held; it would have a gradient in plain autograd, and has none here.
        """
        if self._alive:
            raise InputError(
                f"something keeps a tensor of the denoiser's graph after its call ({len(self._alive)} saved tensors "
                "stay alive), for example an attention map that the network stores. In a loss it would have no "
                "gradient, since the call is recomputed without it: detach what is stored, store it by a forward hook "
                "with Checkpointed(), or use adjoint=Backprop()"
            )


def addresses(tensors: Iterable[Tensor]) -> set[Address]:
    """The addresses of some tensors, as a set."""
    return {address(tensor) for tensor in tensors}


def address(tensor: Tensor) -> Address:
    """The device and address of a tensor's storage, which all its views share."""
    # A sharded weight (DTensor) has only the storage of its local part; gathered copies count as saved.
    tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor  # pyright: ignore
    return tensor.device, tensor.untyped_storage().data_ptr()
