"""One evaluation of a denoiser, made as the policy of its call says.

    KEEP        the evaluation with its graph
    RECOMPUTE   its value now, and its graph in the backward pass (see `recompute`)
    NO_GRAPH    its value alone

An adjoint wraps the denoiser in these and passes the result to the step loop. So neither the solver, the flow nor a
denoiser knows how gradients are made.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from .._types import Cond, GraphPolicy, Run, Scalar, Stats, direct
from ..flow.denoisers import Denoiser, WrappedDenoiser, check_output
from ..flow.influence import Influence
from .block_checkpointing import in_blocks
from .call_accounting import CallAccounting
from .recompute import Recomputation, entered, kept

__all__ = ["Counted", "Evaluated", "Evaluation", "Held", "InBlocks"]


class Evaluation:
    """A denoiser as a function of the tensors that its output depends on: x, t and those of the conditioning.

    Args:
        denoiser: the denoiser.
        cond: the conditioning, for its names.
    """

    def __init__(self, denoiser: Denoiser, cond: Cond) -> None:
        self._denoiser, self._names = denoiser, tuple(cond)

    def __call__(self, x: Tensor, t: Scalar, *given: Tensor) -> Tensor:
        out = self._denoiser(x, t, Cond(dict(zip(self._names, given, strict=True))))
        check_output(self._denoiser, out, x)
        return out


class Evaluated(WrappedDenoiser):
    """A denoiser whose evaluations are counted, and kept, recomputed or made without a graph.

    The graphs of the first evaluations are measured, and searched for what the output depends on.

    Args:
        denoiser: the denoiser.
        accounting: holds the policy of the present call, and the sums.
        recomputation: makes the evaluations that are recomputed.
        influence: searches the graphs; None where nothing requires a gradient.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        accounting: CallAccounting,
        recomputation: Recomputation,
        influence: Influence | None,
    ) -> None:
        super().__init__(denoiser)
        self._accounting, self._recomputation, self._influence = accounting, recomputation, influence

    def forward(self, x: Tensor, t: Scalar, cond: Cond) -> Any:
        accounting, recomputation = self._accounting, self._recomputation
        policy, tensors = accounting.policy, (x, t, *cond.values())
        searches = self._influence is not None and self._influence.open
        by_hooks = policy is GraphPolicy.RECOMPUTE and not recomputation.in_one_node
        if policy is not GraphPolicy.NO_GRAPH and (searches or accounting.measures or by_hooks):
            return self._examined(Evaluation(self.denoiser, cond), *tensors)
        i = accounting.begin_evaluation()
        if policy is GraphPolicy.KEEP:
            out = self.denoiser(entered(x), entered(t), cond.map(entered))
        elif policy is GraphPolicy.NO_GRAPH:
            with torch.no_grad():
                out = self.denoiser(x, t, cond)
        else:
            repeated = accounting.repeated(Evaluation(self.denoiser, cond), i)
            node = recomputation.node(partial(accounting.count, repeated), tensors)
            with torch.no_grad():
                out = self.denoiser(x, t, cond)
            repeated.remember(out)
            out = node(out)
        accounting.end_evaluation(i, out, tensors)
        return out

    def _examined(self, evaluation: Evaluation, *tensors: Tensor) -> Any:
        keeps = self._accounting.policy is GraphPolicy.KEEP
        execute = partial(self._accounting.execute, kept if keeps else self._recomputation.run)
        if self._influence is None:
            return execute(evaluation, *tensors)
        return self._influence.evaluate(execute, evaluation, *tensors)


class Counted(WrappedDenoiser):
    """A denoiser whose evaluations are counted, for adjoints that make their graphs themselves.

    Args:
        denoiser: the denoiser.
        stats: receives the count.
        influence: searches the graphs of the first evaluations.
    """

    def __init__(self, denoiser: Denoiser, stats: Stats, influence: Influence | None) -> None:
        super().__init__(denoiser)
        self._stats, self._influence = stats, influence

    def forward(self, x: Tensor, t: Scalar, cond: Cond) -> Any:
        self._stats.nfe_forward += 1
        if self._influence is None or not self._influence.open:
            return self.denoiser(x, t, cond)
        return self._influence.evaluate(direct, Evaluation(self.denoiser, cond), x, t, *cond.values())


class Held(WrappedDenoiser):
    """A denoiser whose last evaluation without a gradient is held, and returned where the same one is asked for again.

    In an optimization over some of its inputs, what does not depend on them is then evaluated once.

    Args:
        denoiser: the denoiser.
        differentiated: receives the count of the evaluations that depend on what requires a gradient.
    """

    def __init__(self, denoiser: Denoiser, differentiated: Stats) -> None:
        super().__init__(denoiser)
        self._differentiated = differentiated
        self._inputs: tuple[Tensor, ...] = ()
        self._out: Tensor | None = None

    def forward(self, x: Tensor, t: Scalar, cond: Cond) -> Any:
        inputs = (x, t, *cond.values())
        if torch.is_grad_enabled() and any(each.requires_grad for each in inputs):
            self._differentiated.nfe_forward += 1
            return self.denoiser(x, t, cond)
        if self._out is None or not _same(inputs, self._inputs):
            with torch.no_grad():
                self._inputs, self._out = inputs, self.denoiser(x, t, cond)
        return self._out


def _same(inputs: tuple[Tensor, ...], others: tuple[Tensor, ...]) -> bool:
    """Return whether two evaluations have the same inputs, to the bit."""
    return len(inputs) == len(others) and all(map(torch.equal, inputs, others))


class InBlocks(WrappedDenoiser):
    """A denoiser whose network's blocks are executed one by one.

    Args:
        denoiser: the denoiser; its network has such blocks.
        run: executes them.
    """

    def __init__(self, denoiser: Denoiser, run: Run) -> None:
        super().__init__(denoiser)
        self._run = run

    def forward(self, x: Tensor, t: Scalar, cond: Cond) -> Any:
        with in_blocks(self.network, self._run):
            return self.denoiser(x, t, cond)
