"""One call of a denoiser, ready to be made again in the backward pass, bit for bit.

A pipeline may meanwhile change what the call was made of: it swaps attention processors back, pops from
the lists it passed, writes into its latents. The first two are put as they were; the last is an error.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from ._types import AdjointDPMError

__all__ = ["Replay"]


class Replay:
    """`module(*args, **kwargs)` as a function of the tensors among its arguments.

    Args:
        name: what the pipeline calls the module.
    `tensors` are what to call it with: replay(*replay.tensors).
    """

    def __init__(self, name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        leaves, self._form = tree_flatten((args, kwargs))
        self._at = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        self.tensors = [leaves[i] for i in self._at]
        self._rest = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self._versions = [tensor._version for tensor in self.tensors]
        self._name, self._module = name, module
        self._processors = [each.processor for each in _attentions(module)]

    def __call__(self, *tensors: Tensor) -> Any:
        if [tensor._version for tensor in tensors] != self._versions:
            raise AdjointDPMError(
                f"the pipeline has written into a tensor after giving it to its {self._name}, so that call cannot "
                "be recomputed; use adjoint=Backprop()"
            )
        leaves = list(self._rest)
        for i, tensor in zip(self._at, tensors, strict=True):
            leaves[i] = tensor
        args, kwargs = tree_unflatten(leaves, self._form)  # new lists and dictionaries each time
        with self._as_it_was():
            return self._module(*args, **kwargs)

    @contextmanager
    def _as_it_was(self) -> Iterator[None]:
        others = [
            (each, each.processor, then)
            for each, then in zip(_attentions(self._module), self._processors, strict=True)
            if each.processor is not then
        ]
        for each, _, then in others:
            each.set_processor(then)
        try:
            yield
        finally:
            for each, now, _ in others:
                each.set_processor(now)


def _attentions(module: nn.Module) -> list[Any]:
    return [
        each for each in module.modules() if hasattr(each, "set_processor") and hasattr(each, "processor")
    ]
