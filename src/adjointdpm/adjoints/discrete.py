"""Discretize, then optimize: the exact gradient of the steps that a sampler took.

Autograd differentiates the step loop. A policy decides for each denoiser call whether its graph is kept, recomputed in
the backward pass, or not made. The operations between the calls are linear and save almost nothing.
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
from .draws import draws
from .evaluation import Evaluated
from .recompute import Blocks, Recomputation, without_graph
from .saved_bytes import BudgetExceededError

__all__ = ["Backprop", "Checkpointed", "Truncated"]


class Discrete(Adjoint):
    """The step loop under autograd. Subclasses give a policy for each denoiser call."""

    @property
    def limit(self) -> float:
        """The most bytes that the measured graph may hold."""
        return math.inf

    blocks: Blocks | None = None
    """Recomputes the network's blocks one by one; None if nothing does."""

    detached: bool = False
    """Whether the calls of a pipeline's denoiser that have a graph get their states without one."""

    def drawn(self, state: Tensor, calls: int) -> "Discrete":
        """The adjoint of one run of a pipeline, after its random choices.

        Args:
            state: the state of the first denoiser call.
            calls: the number of calls that the pipeline announces.

        Returns:
            the adjoint, with its choices made.
        """
        return self

    @abstractmethod
    def policy(self, i: int, calls: int, graph: int | None) -> GraphPolicy:
        """What happens to the graph of a denoiser call.

        Args:
            i: the number of the call, from 0.
            calls: how many there are.
            graph: bytes of the graphs of one call; None before they are measured.

        Returns:
            the policy.
        """

    def refuse(self, ivp: IVP) -> None:
        """Raise if this adjoint has no gradient for a tensor that requires one.

        Args:
            ivp: the problem.

        Raises:
            InputError: it has none.
        """

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
    """Plain backpropagation: the graph of every call is kept.

        memory: N graphs;    time: N f + N b, with f a call forward and b a call backward

    It is exact. Use it where it fits into memory; `Checkpointed` gives the same bits in the memory of one graph.

    Examples:
        >>> import adjointdpm as adp
        >>> sampler = adp.load_bundled("emoji", steps=2, adjoint=adp.Backprop())
        >>> noise = sampler.noise(1).requires_grad_()
        >>> sampler(noise, sampler.encode("a cat")).mean().backward()
        >>> sampler.stats.nfe_forward, sampler.stats.nfe_backward
        (2, 2)
    """

    recomputes = False

    def policy(self, i: int, calls: int, graph: int | None) -> GraphPolicy:
        return GraphPolicy.KEEP


@dataclass(frozen=True)
class Checkpointed(Discrete):
    """The graph of every call is recomputed in the backward pass: exact, in the memory of one graph. The default.

        memory: N states + max(k, 1) graphs;    time: (2N - k) f + N b, with k graphs kept

    The gradient equals that of `Backprop`, bit for bit where the denoiser is deterministic. The graphs of the last k
    calls are kept, since the backward pass frees them before it recomputes the first graph. The decoder is recomputed
    by blocks.

    Args:
        keep: k >= 0, the number of calls whose graph is kept, counted from the last; all if there are fewer.
        budget: memory for what the backward pass holds (states, graphs, decoder), from which k follows: bytes, a text
            such as "8GiB" or "500MB", or "auto" for 0.8 of the free memory. It needs torch >= 2.8, which measures
            graphs. If one graph does not fit, guidance is split into two evaluations, and then the network's blocks
            are recomputed one by one, where diffusers exposes them. `stats.predicted` is the planned figure. In
            `differentiable` and `PipelineSampler` the budget counts graphs only, and guidance is never split.

    Raises:
        InputError: keep is negative; both are given; the budget cannot be read, or is too small, and the message says
            by how much.

    References:
        Griewank and Walther, 2000 (revolve); Chen et al., 2016, arXiv 1604.06174.

    Examples:
        >>> import adjointdpm as adp
        >>> sampler = adp.load_bundled("emoji", steps=3, adjoint=adp.Checkpointed(keep=1))
        >>> noise = sampler.noise(1).requires_grad_()
        >>> sampler(noise, sampler.encode("a cat")).mean().backward()
        >>> sampler.stats.nfe_forward, sampler.stats.nfe_backward
        (5, 3)
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
    """`Checkpointed` with as many kept graphs as a budget allows; the first call's graph is measured."""

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
    """DRaFT-K: the gradient through the last K denoiser calls only (Clark et al., 2023, arXiv 2309.17400).

        memory: K states + 1 graph;    time: N f + K (f + b)

    It is cheap and biased: the contribution of the early calls, which decide the layout of the image, is left out. Use
    it for weights when there are many steps and the metric is about detail. Do not use it where `compare` shows that
    it is far off, nor for noise, whose gradient passes through every call and is refused.

    Args:
        last: K >= 1, the number of calls that are differentiated; each is recomputed in the backward pass.
        repeats: n >= 1. With n > 1 it is DRaFT-LV: the finished latents are noised to the level of the last step n
            times, and the gradient of the last step is the mean over these, at the cost of n more calls. The image
            stays the same, and the gradient of the metric is taken there once, where the paper takes it at each of the
            n images; for a metric that is linear in the latents both are the same.
        seed: of the noise of these copies, which is a function of it and of the noise that the sampling starts from.

    Raises:
        InputError: last < 1; repeats < 1; repeats with last > 1; or the noise or the time grid requires a gradient.

    References:
        Clark et al., 2023, arXiv 2309.17400.

    Examples:
        >>> import adjointdpm as adp
        >>> sampler = adp.load_bundled("emoji", steps=3, adjoint=adp.Truncated(last=1))
        >>> cond = sampler.encode("a cat").requires_grad_()
        >>> sampler(sampler.noise(1), cond).mean().backward()
        >>> sampler.stats.nfe_backward
        1
    """

    last: int = 1
    repeats: int = 1
    seed: int = 0

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
            final = super().solve(ivp, stats)
            if (
                wants_gradient(ivp) and not final.requires_grad
            ):  # the last call of `Coupled` is for its second state
                raise InputError(
                    f"{self!r} makes no gradient, since the result does not depend on the last {self.last} of "
                    f"{ivp.calls} denoiser calls; give a larger last"
                )
            return final
        self.refuse(ivp)
        generator = torch.Generator().manual_seed(draws(self.seed, ivp.initial).getrandbits(63))
        final = without_graph(Backprop().solve, ivp, stats)
        return _low_variance(ivp, final, self.repeats, generator, stats)


def _low_variance(
    ivp: IVP, final: Tensor, repeats: int, generator: torch.Generator, stats: Stats
) -> Tensor:
    """The finished latents, with the mean gradient of the last step from noised copies of them (DRaFT-LV).

    x = (alpha / alpha_0) x_0 + sqrt(sigma^2 - (alpha / alpha_0)^2 sigma_0^2) eps,   eps standard normal

    Args:
        ivp: the problem.
        final: its solution.
        repeats: the number of copies.
        generator: of eps, on the CPU.
        stats: the record of the sampling.

    Returns:
        the values of `final`, with this gradient.
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
        eps = torch.randn(final.shape, generator=generator, dtype=final.dtype).to(final.device)
        z = (keep * end.scale * final + spread * eps) / now.scale
        (again,) = integrate(f, (z,), last, Euler())
        out = out + (again - again.detach()) / repeats
    return out
