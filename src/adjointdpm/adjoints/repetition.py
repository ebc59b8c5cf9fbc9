"""The check that a recomputed denoiser call returns the same output as in the forward pass.

    |P F' - P F| <= tolerance * |F|       F an output, F' its recomputation, P a fixed random projection to 4 numbers

Five numbers of each output, its norm among them, are kept from the forward pass. A denoiser may return another output
when it is called again: because of its own random generator, a step counter, a cache of earlier outputs, or weights
that were written without their version counters. A recomputation cannot find its gradient, so this is an error.

The tolerance allows for rounding. On a CPU it is eps^0.8 (3e-6 in float32), since a repeated call differs at most by
the choice of a kernel with or without a graph. On other devices, where the order of sums changes, it is eps^0.6 (7e-5
in float32, 0.05 in bfloat16). eps is that of the coarsest dtype in use.
"""

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from .._types import AdjointDPMError, RecomputationError

__all__ = ["Checksum", "Repeated", "rounding"]

_OPERATIONS = 4  # compared operations; more would reach into the graphs of the step's other networks
_LENGTH = 4096  # length of the projection's pattern; longer outputs are folded


class Checksum:
    """The norm and a projection of each tensor of a result.

    Args:
        out: the result: a tensor, or nested containers of tensors.
    """

    def __init__(self, out: Any) -> None:
        tensors = [each.detach() for each in tree_leaves(out) if isinstance(each, Tensor)]
        kind = tensors[0].device.type if tensors else "cpu"
        with torch.autocast(kind, enabled=False):  # sums in half precision would be too inexact
            self._parts = [_projected(each) for each in tensors]

    def distance(self, other: "Checksum") -> float:
        """The distance of two results, relative to the norm of this one.

        Args:
            other: the checksum of the other result.

        Returns:
            the largest distance over the tensors; 0 for the same bits, infinity for another number of tensors.
        """
        if len(self._parts) != len(other._parts):
            return float("inf")
        pairs = zip(self._parts, other._parts, strict=True)
        return max((float((a - b).norm() / a[0].clamp(min=1e-30)) for a, b in pairs), default=0.0)


class Repeated:
    """A function whose later results must agree with the checksum of its first result.

    Args:
        fn: the function.
        name: the name of this call in messages.
        tolerance: the largest relative distance of two results; see `rounding`.

    Raises:
        RecomputationError: a later call returns another result, or fails.
    """

    def __init__(self, fn: Callable[..., Any], name: str, tolerance: float) -> None:
        self._fn, self._name, self._tolerance = fn, name, tolerance
        self._first: Checksum | None = None
        self._last_operations: tuple[str, ...] = ()

    def remember(self, out: Any, tensors: tuple[Tensor, ...] = ()) -> None:
        """Store the checksum of the first result.

        Args:
            out: the result.
            tensors: the arguments, where the result has a graph.
        """
        self._first, self._last_operations = Checksum(out), _last_operations(out, tensors)

    def __call__(self, *tensors: Tensor) -> Any:
        if self._first is None:
            out = self._fn(*tensors)
            self.remember(out, tensors)
            return out
        try:
            out = self._fn(*tensors)
        except (AdjointDPMError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # a CheckpointError, where the graph grew, or an error of the network
            raise _impure(self._name, f"it raised {type(error).__name__}: {error}") from error
        away = self._first.distance(Checksum(out))
        if not away <= self._tolerance:
            raise _impure(self._name, f"its result differs from the first one by {away:.1e} of its norm")
        # A cache may return the same value without its graph. Where the first result had no graph, none is compared.
        if self._last_operations and self._last_operations != _last_operations(out, tensors):
            raise _impure(self._name, "its result comes from other operations than the first one")
        return out


def _last_operations(out: Any, tensors: tuple[Any, ...]) -> tuple[str, ...]:
    """The names of the last operations in the graph of a result, which begins at `tensors`."""
    before = {each.grad_fn for each in tensors if isinstance(each, Tensor)} | {None}
    queue: list[Any] = [each.grad_fn for each in tree_leaves(out) if isinstance(each, Tensor)]
    found: list[str] = []
    for node in queue:
        if node not in before and not hasattr(node, "variable"):  # a leaf's
            found.append(node.name())
            queue += [parent for parent, _ in node.next_functions]
        if len(found) == _OPERATIONS:
            break
    return tuple(found)


def _impure(name: str, how: str) -> RecomputationError:
    return RecomputationError(
        f"{name} was recomputed in the backward pass, and {how}. The denoiser is not "
        "the same function when it is called again (a random generator, a counter or a cache of its own, or weights "
        "that were changed meanwhile); use adjoint=Backprop(), or make it depend on its arguments alone"
    )


def _projected(tensor: Tensor) -> Tensor:
    """The norm |x| and the projection P x, in float32 or wider, on the tensor's device."""
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    wide = tensor.dtype if tensor.dtype in (torch.float32, torch.float64) else torch.float32
    flat = tensor.reshape(-1).to(wide)
    norm = torch.linalg.vector_norm(flat)
    pattern, rows = _pattern(flat.device, wide), len(flat) // _LENGTH
    found = flat[rows * _LENGTH :] @ pattern[: len(flat) - rows * _LENGTH]
    if rows:
        folded = flat[: rows * _LENGTH].view(rows, _LENGTH) @ pattern
        found = found + (folded * pattern.repeat(-(-rows // _LENGTH), 1)[:rows]).sum(0)
    return torch.cat([norm[None], found])


@cache
def _pattern(device: torch.device, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(_LENGTH, 4, generator=generator, dtype=torch.float64).to(device, dtype)


def rounding(tensors: Iterable[Tensor]) -> float:
    """The relative change that rounding may cause between two calls of a network.

    Args:
        tensors: the network's weights and arguments.

    Returns:
        eps^0.7 on a CPU and eps^0.6 on other devices, eps that of the coarsest dtype: without AVX-512 a small UNet in
        float32 differs by 28 eps with and without a graph.
    """
    coarsest, others = 0.0, False
    for tensor in tensors:
        others |= tensor.device.type != "cpu"
        if tensor.is_floating_point() and torch.finfo(tensor.dtype).bits >= 16:
            coarsest = max(coarsest, torch.finfo(tensor.dtype).eps)
    kind = "cuda" if others else "cpu"
    if torch.is_autocast_enabled(kind):
        coarsest = max(coarsest, torch.finfo(torch.get_autocast_dtype(kind)).eps)
    return coarsest ** (0.6 if others else 0.7)
