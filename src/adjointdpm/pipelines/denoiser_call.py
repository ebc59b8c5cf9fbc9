"""One call of a denoiser, which can be repeated in the backward pass, bit for bit.

A pipeline may meanwhile change the inputs of the call: it resets attention processors, pops from the lists that it
passed, writes into its latents. The first two are restored for the repetition; the last is an error.

A network receives states in its own dtype, and its output is cast back to that of the states. So states may be float32
where weights are bfloat16. Under autocast, autocast does this.

Tensors that another denoiser of the same step has made (a ControlNet's residuals, far larger than latents) are not held
until the backward pass, but recomputed from the inputs of that denoiser.
"""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from .._types import RecomputationError, Stats
from ..adjoints.recompute import without_graph

__all__ = ["Replay", "attentions_of", "dtype_of"]


class Replay:
    """The call `module(*args, **kwargs)` as a function of the tensors among its arguments.

    Its `tensors` are the arguments to call it with: replay(*replay.tensors).

    Args:
        name: the name of the module in the pipeline.
        module: the denoiser.
        args: its positional arguments.
        kwargs: its keyword arguments.
        attentions: the attention modules inside it, from `attentions_of`; searching a model for them takes time.
        dtype: the module's own dtype, from `dtype_of`, for the same reason.
        sources: earlier calls of the same step; a tensor that one of them made is recomputed by it.
        stats: the record of the sampling, which counts these further calls.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        args: Any,
        kwargs: Any,
        attentions: list[Any],
        dtype: torch.dtype | None,
        sources: "list[Replay]",
        stats: Stats,
    ) -> None:
        leaves, self._form = tree_flatten((args, kwargs))
        self._made: dict[int, tuple[Replay, int]] = {}
        for source in sources:
            found = ((i, source.position(leaf)) for i, leaf in enumerate(leaves))
            self._made |= {i: (source, j) for i, j in found if j is not None}
        self._first = {i: leaves[i] for i in self._made}  # used by the first call alone
        self._require_grad = {i: leaves[i].requires_grad for i in self._made}
        self._at = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and i not in self._made]
        self.tensors = [leaves[i] for i in self._at]
        self._rest = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self._versions = [tensor._version for tensor in self.tensors]
        self._name, self._module = name, module
        self._attentions, self._dtype = attentions, dtype
        self._processors = [each.processor for each in attentions]
        self._outputs: list[tuple[Any, int]] = []  # weak references, with versions
        self._stats = stats

    def made(self, out: Any) -> None:
        """Store weak references to the outputs of this call.

        Args:
            out: the result.
        """
        leaves = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        self._outputs = [(weakref.ref(leaf), leaf._version) for leaf in leaves]

    def position(self, tensor: Any) -> int | None:
        """The number of a tensor among this call's outputs.

        Args:
            tensor: the tensor.

        Returns:
            its number; None if it is not an output, or has been written into since.
        """
        for i, (reference, version) in enumerate(self._outputs):
            if reference() is tensor and tensor is not None:
                return i if tensor._version == version else None
        return None

    def __call__(self, *tensors: Tensor) -> Any:
        if [tensor._version for tensor in tensors] != self._versions:
            raise RecomputationError(
                f"a tensor was written into after {self._name} received it, by the pipeline or since its call, "
                "so that call cannot be recomputed; use adjoint=Backprop()"
            )
        leaves: list[Any] = list(self._rest)
        for i, tensor in zip(self._at, tensors, strict=True):
            leaves[i] = tensor
        for i, tensor in self._from_sources().items():
            leaves[i] = tensor
        state = next((each.dtype for each in leaves if _carries(each)), None)
        own = self._dtype
        cast = None not in (state, own) and state != own and not _autocast(leaves)
        if cast:
            leaves = [each.to(own) if _carries(each) else each for each in leaves]
        args, kwargs = tree_unflatten(leaves, self._form)  # new lists and dictionaries each time
        with self._as_it_was():
            out = self._module(*args, **kwargs)
        return tree_map(lambda each: each.to(state) if _carries(each) else each, out) if cast else out

    def _from_sources(self) -> dict[int, Tensor]:
        if self._first or not self._made:
            first, self._first = self._first, {}
            return first
        results = {}
        for source in {id(source): source for source, _ in self._made.values()}.values():
            out = without_graph(source, *source.tensors)
            results[id(source)] = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
            self._stats.nfe_forward += 1
        return {
            i: results[id(source)][j].requires_grad_(self._require_grad[i])
            for i, (source, j) in self._made.items()
        }

    @contextmanager
    def _as_it_was(self) -> Iterator[None]:
        others = [
            (each, each.processor, then)
            for each, then in zip(self._attentions, self._processors, strict=True)
            if each.processor is not then
        ]
        for each, _, then in others:
            each.set_processor(then)
        try:
            yield
        finally:
            for each, now, _ in others:
                each.set_processor(now)


def attentions_of(module: nn.Module) -> list[Any]:
    """The modules inside a module whose attention processor can be set."""
    return [
        each for each in module.modules() if hasattr(each, "set_processor") and hasattr(each, "processor")
    ]


def dtype_of(module: Any) -> torch.dtype | None:
    """The dtype in which a module takes states; None where its weights have a dtype that states cannot have."""
    own = getattr(module, "dtype", None)
    return own if own in (torch.float16, torch.bfloat16, torch.float32, torch.float64) else None


def _carries(leaf: Any) -> bool:
    """Whether an argument is a state or an embedding; times and scales keep their dtype, which may be wider."""
    return isinstance(leaf, Tensor) and leaf.ndim > 1 and leaf.is_floating_point()


def _autocast(leaves: list[Any]) -> bool:
    return any(isinstance(each, Tensor) and torch.is_autocast_enabled(each.device.type) for each in leaves)
