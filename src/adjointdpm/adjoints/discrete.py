"""Discretize, then optimize: the exact gradient of the sampler that ran.

One mechanism, a policy per denoiser call: its graph is kept, or recomputed when the backward pass
reaches it, or never made. Everything between the calls is linear and saves next to nothing.
"""

import math
from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from .._types import GraphPolicy, InputError, State, Stats, Time
from ..flow.grids import TimeGrid
from ..solvers import Euler
from ..solvers.integrate import IVP, integrate
from .base import Adjoint, wants_gradient
from .budget import Budget, by_blocks, bytes_of, parsed, split
from .call_accounting import CallAccounting
from .cotangents import CotangentNorms
from .evaluation import Evaluated
from .recompute import Blocks, Recomputation, without_graph
from .saved_bytes import BudgetExceededError

__all__ = ["Backprop", "Checkpointed", "Truncated"]


class Discrete(Adjoint):
    """The step loop under autograd; subclasses say what happens to each denoiser call."""

    @property
    def limit(self) -> float:
        """The most bytes that the graph which is measured may hold."""
        return math.inf

    blocks: Blocks | None = None
    """What recomputes the network's blocks one by one, if anything does."""

    @abstractmethod
    def policy(self, i: int, calls: int, graph: int | None) -> GraphPolicy:
        """How call `i` of `calls` is run; `graph` is the size of one graph in bytes, once known."""

    def refuse(self, ivp: IVP) -> None:
        """Raise if this adjoint cannot give a gradient that is required."""

    def solve(self, ivp: IVP, stats: Stats) -> Tensor:
        wanted = wants_gradient(ivp)
        if wanted:
            self.refuse(ivp)
        weights = list(ivp.flow.denoiser.parameters())
        shared = [*ivp.cond.values(), *weights]
        accounting = CallAccounting(stats, shared, self.blocks, self.limit)
        recomputation = Recomputation(ivp.flow.denoiser)
        evaluated = ivp.wrapped(lambda each: Evaluated(each, accounting, recomputation, ivp.influence))

        def f(state: State, time: Time) -> State:
            i = accounting.call
            policy = self.policy(i, ivp.calls, accounting.graph) if wanted else GraphPolicy.KEEP
            accounting.begin(policy)
            if policy is GraphPolicy.RECOMPUTE:
                recomputation.begin(i)
            return (evaluated.velocity(state[0], time),)

        trace = CotangentNorms(stats, ivp.grid)

        def observe(i: int, state: State) -> None:
            trace.follow(state[0], ivp.grid[i])

        return integrate(f, (ivp.initial,), ivp.grid, ivp.solver, observe)[0]


@dataclass(frozen=True)
class Backprop(Discrete):
    """Plain backpropagation: every call's graph is kept. Exact; N graphs of memory, N f + N b of time.

    Use it when it fits; `Checkpointed` gives the same bits in the memory of one graph.
    """

    recomputes = False

    def policy(self, i: int, calls: int, graph: int | None) -> GraphPolicy:
        return GraphPolicy.KEEP


@dataclass(frozen=True)
class Checkpointed(Discrete):
    """Every call's graph is recomputed when its turn comes: the default, exact, in one graph of memory.

        N states + 1 graph of memory,   (2N - k) f + N b of time for k graphs kept

    The gradient is that of `Backprop`, bit for bit where the denoiser is deterministic. The last calls
    are the ones kept, since the backward pass frees them before it makes the first new graph; so the
    peak is max(k, 1) graphs. The decoder is recomputed by blocks.

    Args:
        keep: number of calls, counted from the last, whose graph is kept; more than there are keeps all.
        budget: memory for what the backward pass holds instead (states, graphs, decoder), in bytes, as
            "8GiB" or "500MB", or "auto": 0.8 of what is free. k follows from the measured sizes (torch >=
            2.8); if not one graph fits, guidance is split into two calls, and then the network's blocks are
            recomputed one by one, where diffusers knows them. `stats.predicted` is the plan's figure. In
            `differentiable` and `PipelineSampler` it counts graphs only, and guidance is never split.

    Raises:
        InputError: keep is negative, both are given, the budget cannot be read, or is too small: the
            message says by how much.
    Reference: Griewank and Walther, 2000 (revolve); Chen et al., 2016, arXiv 1604.06174.
    """

    keep: int = 0
    budget: int | str | None = None

    def __post_init__(self) -> None:
        if self.keep < 0:
            raise InputError(f"keep is a number of denoiser calls, at least 0, but is {self.keep}")
        if self.budget is not None:
            if self.keep:
                raise InputError("give keep or budget, not both: the budget decides how many to keep")
            if self.budget != "auto":
                parsed(self.budget)

    def decoder_allowance(self, ivp: IVP) -> float | None:
        if self.budget is None or not wants_gradient(ivp):
            return None
        return float(bytes_of(self.budget, ivp.initial.device) - ivp.calls * ivp.initial.nbytes)

    def policy(self, i: int, calls: int, graph: int | None) -> GraphPolicy:
        if self.budget is None:
            return GraphPolicy.KEEP if i >= calls - self.keep else GraphPolicy.RECOMPUTE
        if i == 0:  # the first call is measured, and is the last one worth keeping
            return GraphPolicy.RECOMPUTE
        # A pipeline's policy: its scheduler's states are not known here, and its device only by default.
        budget = Budget(bytes_of(self.budget, torch.get_default_device()))
        try:
            keep = budget.keep(calls, _known(graph), _known(graph))
        except BudgetExceededError as error:
            raise budget.refuse(error.graph) from None
        return GraphPolicy.KEEP if i >= calls - keep else GraphPolicy.RECOMPUTE

    def solve(self, ivp: IVP, stats: Stats) -> Tensor:
        if self.budget is None or not wants_gradient(ivp):
            return super().solve(ivp, stats)
        total = bytes_of(self.budget, ivp.initial.device)
        budget = Budget(total, ivp.calls * ivp.initial.nbytes, stats.reserved)
        halves = split(ivp)
        smaller = by_blocks(halves or ivp)
        needed = 0
        plans = [(ivp, None), *([(halves, None)] if halves else []), *([smaller] if smaller else [])]
        for i, (each, blocks) in enumerate(plans):
            stats.states = stats.kept = stats.recomputed = 0  # of a call that did not fit
            # Measuring stops where the budget ends, but for the last plan: a refusal says what is missing.
            planned = _Planned(budget, stats, last=i + 1 == len(plans), blocks=blocks)
            try:
                return planned.solve(each, stats)
            except BudgetExceededError as error:
                needed = error.graph
        raise budget.refuse(needed)


@dataclass(frozen=True, eq=False)
class _Planned(Discrete):
    """`Checkpointed` with as many kept graphs as a budget allows, once one of them has been measured."""

    budget: Budget
    stats: Stats
    last: bool  # whether there is no smaller plan
    blocks: Blocks | None = None  # where they are recomputed one by one, no graph is kept

    @property
    def limit(self) -> float:
        return math.inf if self.last else float(self.budget.total - self.budget.states)

    def policy(self, i: int, calls: int, graph: int | None) -> GraphPolicy:
        if i == 0:
            return GraphPolicy.RECOMPUTE
        # A call is one graph, or two where guidance is split, of which the larger is made anew at a time.
        graph, largest = _known(graph), self.stats.recomputed
        fits = self.budget.keep(calls, graph, largest)
        keep = fits if self.blocks is None else 0
        self.stats.predicted = self.budget.held(keep, graph, largest)
        return GraphPolicy.KEEP if i >= calls - keep else GraphPolicy.RECOMPUTE

    def solve(self, ivp: IVP, stats: Stats) -> Tensor:
        final = super().solve(ivp, stats)
        if ivp.calls == 1:  # there was no second call to be asked about
            self.budget.keep(1, stats.recomputed, stats.recomputed)
            stats.predicted = self.budget.held(0, stats.recomputed, stats.recomputed)
        return final


def _known(graph: int | None) -> int:
    if graph is None:
        raise InputError("Checkpointed(budget=) needs torch >= 2.8; use Checkpointed(keep=)")
    return graph


@dataclass(frozen=True)
class Truncated(Discrete):
    """DRaFT-K: no gradient before the last K denoiser calls (Clark et al., 2023, arXiv 2309.17400).

    Cheap, and biased: what the early calls, which lay out the image, contribute to the gradient is
    left out. Use it for weights when steps are many and the metric is about detail; not for noise
    (refused, as that gradient passes through every call), and not where `compare` shows it is far off.

    Args:
        last: K >= 1, how many calls are differentiated, each recomputed when its turn comes.
        repeats: n > 1 is DRaFT-LV: the finished latents are noised again to the last step's level n times,
            and the last step's gradient is the mean over them, in n calls more. The image stays what
            it was, and the metric's own gradient is taken there once, where the paper takes it at each of
            the n images; for a metric linear in the latents it is the same. The noise is torch's global.

    Raises:
        InputError: last < 1, repeats < 1, repeats with last > 1, or a gradient of the noise is required, or of
            the grid.
    """

    last: int = 1
    repeats: int = 1

    def __post_init__(self) -> None:
        if self.repeats < 1:
            raise InputError(f"repeats is a number of noised copies, at least 1, but is {self.repeats}")
        if self.repeats > 1 and self.last != 1:
            raise InputError(
                f"repeats averages over the last call alone, but last = {self.last}; give last=1"
            )
        if self.last < 1:
            raise InputError(f"last is a number of denoiser calls, at least 1, but is {self.last}")

    def refuse(self, ivp: IVP) -> None:
        if self.last >= ivp.calls and self.repeats == 1:
            return
        for name, tensor in (("the time grid", ivp.grid.times), ("the noise", ivp.initial)):
            if tensor.requires_grad:
                raise InputError(
                    f"{self!r} makes no gradient before the last {self.last} of "
                    f"{ivp.calls} denoiser calls, so it has none for {name}; use Checkpointed(), or "
                    f"pass {name} without requires_grad"
                )

    def policy(self, i: int, calls: int, graph: int | None) -> GraphPolicy:
        return GraphPolicy.RECOMPUTE if i >= calls - self.last else GraphPolicy.NO_GRAPH

    def solve(self, ivp: IVP, stats: Stats) -> Tensor:
        if self.repeats == 1 or not wants_gradient(ivp):
            return super().solve(ivp, stats)
        self.refuse(ivp)
        return _low_variance(ivp, without_graph(Backprop().solve, ivp, stats), self.repeats, stats)


def _low_variance(ivp: IVP, final: Tensor, repeats: int, stats: Stats) -> Tensor:
    """`final`, with the mean gradient of the last step from noised copies of it (DRaFT-LV).

    x = (alpha / alpha_0) x_0 + sqrt(sigma^2 - (alpha / alpha_0)^2 sigma_0^2) eps,   eps standard normal
    """
    N = len(ivp.grid)
    now, end = ivp.grid[N - 1], ivp.grid[N]
    keep = now.alpha / end.alpha
    spread = (now.sigma**2 - (keep * end.sigma) ** 2).sqrt()
    last = TimeGrid(ivp.grid.schedule, ivp.grid.times[-2:])
    accounting = CallAccounting(stats, [*ivp.cond.values(), *ivp.flow.denoiser.parameters()])
    recomputation = Recomputation(ivp.flow.denoiser)
    evaluated = ivp.wrapped(lambda each: Evaluated(each, accounting, recomputation, ivp.influence))

    def f(state: State, time: Time) -> State:
        recomputation.begin(accounting.call)
        accounting.begin(GraphPolicy.RECOMPUTE)
        return (evaluated.velocity(state[0], time),)

    out = final
    for _ in range(repeats):
        z = (keep * end.scale * final + spread * torch.randn_like(final)) / now.scale
        (again,) = integrate(f, (z,), last, Euler())
        out = out + (again - again.detach()) / repeats
    return out
