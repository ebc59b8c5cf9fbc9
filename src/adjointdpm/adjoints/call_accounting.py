"""The accounting of one sampling: the number of denoiser calls, and the bytes that their graphs hold.

A *call* is the denoising of one step. It consists of one or more *evaluations* of a network: two where guidance is
split, or where a ControlNet precedes the denoiser. One policy holds for all evaluations of a call. Solvers and
pipelines use the same accounting.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from .._types import GraphPolicy, Run, Stats
from .recompute import Blocks
from .repetition import Repeated, rounding
from .saved_bytes import SavedBytes, address, addresses

__all__ = ["CallAccounting"]


class CallAccounting:
    """Counts the calls of one sampling and adds up the bytes that the backward pass will hold.

    The graphs of the first call that has graphs are measured while they are made. Those of the other calls have the
    same sizes.

    Args:
        stats: the record that receives the sums.
        shared: tensors that exist anyway (weights, conditioning), which are not counted.
        blocks: recomputes a network's blocks within an evaluation; None if nothing does.
        limit: the most bytes that one graph may hold.

    Raises:
        BudgetExceededError: in an evaluation, as soon as its graph is larger.
    """

    def __init__(
        self, stats: Stats, shared: list[Tensor], blocks: Blocks | None = None, limit: float = math.inf
    ) -> None:
        self.stats, self._blocks, self._limit = stats, blocks, limit
        self.call, self.policy = 0, GraphPolicy.KEEP
        self._shared, self._rounding = frozenset(addresses(shared)), rounding(shared)
        self._counted = set(self._shared)
        self._sizes: list[int] = []  # of the graphs of the measured call's evaluations
        self._measured: int | None = None  # the first call that has graphs
        self._evaluation = 0  # of the present call

    @property
    def graph(self) -> int | None:
        """Bytes of the graphs of one call; None before one has been measured, or if torch cannot measure them."""
        return sum(self._sizes) if self._sizes and self.stats.measured else None

    @property
    def measures(self) -> bool:
        """Whether the next evaluation's graph, if it has one, is measured."""
        elsewhere = self._measured not in (None, self.call) or self._evaluation < len(self._sizes)
        return torch.is_grad_enabled() and not elsewhere

    def begin(self, policy: GraphPolicy) -> None:
        """Begin the next call.

        Args:
            policy: what happens to the call's graph.
        """
        self.call += 1
        self._evaluation, self.policy = 0, policy

    def execute(self, run: Run, fn: Callable[..., Any], *tensors: Tensor) -> Any:
        """Make one evaluation of the present call.

        Args:
            run: makes it, as the policy says.
            fn: the evaluation.
            *tensors: its arguments.

        Returns:
            the result of run(fn, *tensors).

        Raises:
            BudgetExceededError: its graph is larger than the limit.
        """
        i = self.begin_evaluation()
        if self.policy is GraphPolicy.RECOMPUTE:
            fn = self.repeated(fn, i)
        out = run(partial(self._measured_evaluation, fn, i), *tensors)
        self.end_evaluation(i, out, tensors, counted=True)
        return out

    def begin_evaluation(self) -> int:
        """The number of the next evaluation within the present call."""
        self._evaluation += 1
        return self._evaluation - 1

    def repeated(self, fn: Callable[..., Any], i: int) -> Repeated:
        """An evaluation whose later results are compared with its first one.

        Args:
            fn: the evaluation.
            i: its number within the call.

        Returns:
            the evaluation.
        """
        name = f"denoiser call {self.call - 1}" + (f", evaluation {i}" if i else "")
        return Repeated(fn, name, self._rounding)

    def count(self, fn: Callable[..., Any], *tensors: Tensor) -> Any:
        """Make and count an evaluation whose graph is not measured."""
        self.stats.nfe_forward += 1
        return fn(*tensors)

    def end_evaluation(self, i: int, out: Any, tensors: Sequence[Tensor], counted: bool = False) -> None:
        """Add up what the backward pass holds of an evaluation.

        Args:
            i: its number within the call.
            out: its result.
            tensors: its arguments.
            counted: whether it has been counted already.
        """
        self.stats.nfe_forward += not counted
        graph = self._sizes[min(i, len(self._sizes) - 1)] if self._sizes else 0
        differentiable = [t for t in tree_leaves(out) if isinstance(t, Tensor) and t.requires_grad]
        if not differentiable:
            return
        differentiable[0].register_hook(self._differentiated)
        if self.policy is GraphPolicy.KEEP:
            self.stats.kept += graph
        else:
            self.stats.states += sum(map(self._held, tensors))
            self.stats.recomputed = max(self.stats.recomputed, graph)

    def _held(self, tensor: Tensor) -> int:
        """Bytes of an input that is held for the recomputation; 0 if they have been counted before."""
        at = address(tensor)
        if tensor.ndim == 0 or at in self._counted:
            return 0
        self._counted.add(at)
        return tensor.untyped_storage().nbytes()

    def _measured_evaluation(self, fn: Callable[..., Any], i: int, *tensors: Tensor) -> Any:
        self.stats.nfe_forward += 1
        elsewhere = self._measured not in (None, self.call) or i < len(self._sizes)
        if elsewhere or not torch.is_grad_enabled():
            return fn(*tensors)
        self._measured = self.call
        with SavedBytes(self._shared, self._limit) as saved:
            out = fn(*tensors)
        self.stats.measured &= saved.bytes is not None
        # Where blocks are recomputed, their inputs are held, and of one at a time the graph.
        self._sizes.append((saved.bytes or 0) + (self._blocks.largest if self._blocks else 0))
        return out

    def _differentiated(self, cotangent: Tensor) -> None:
        self.stats.nfe_backward += 1
