"""Surrogates of a trajectory's gradient: the velocities of a few calls, differentiated at states without a graph.

    out  = xhat + sg(z_N - xhat),     xhat = sum_i w_i v_i,     v_i = v(sg(z_i), tau_i)
    v_j  = v(a zhat_j + (1 - a) sg(zhat_j), tau_j),             zhat_j = sum_i m_i v_i,     at a cut j, if there is one

z_i is the input of call i in a sampling without a graph, sg stops the gradient, and only the gradient of xhat matters,
since the value of `out` is that of the sampling, bit for bit. A method of the literature is a choice of the calls i, of
the weights w and m, and of the coupling a: a `Plan`. Most of them take as weights those with which the sampler's own
steps add up the velocities (`Quadrature`); for Euler's steps these are the step sizes.

Without the Jacobians of the states such a gradient depends on the coordinates, and these are the sampler's own. For a
rectified flow z = x, tau = sigma and v is the network's output, which is the form that FlowBP, LeapAlign and SRPO
publish. For a model of noise z = y = x / alpha, tau = rho = sigma / alpha and v = eps, so that the path without
Jacobians is DDIM's x' = (alpha' / alpha) x + ... with eps detached, which is the form that DRTune publishes; the other
methods are carried over to it. A schedule with `bounded=True` takes the coordinates of rectified flow for any model. Of
a model of v or of the data, the noise that follows from its output is detached as a whole.
"""

import random
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from .._types import GraphPolicy, InputError, State, Stats, Time
from ..flow.grids import TimeGrid
from ..flow.per_sample import widened
from ..solvers.integrate import IVP, integrate
from .base import Adjoint, wants_gradient
from .call_accounting import CallAccounting
from .cotangents import CotangentNorms
from .discrete import Backprop, Discrete
from .draws import draws
from .evaluation import Evaluated
from .recompute import Recomputation

__all__ = [
    "DetachedCalls",
    "Leap",
    "Plan",
    "Planned",
    "Quadrature",
    "Rollout",
    "Surrogate",
    "Velocity",
    "equally_spaced",
    "followed",
    "straight_through",
    "total",
    "without_state_graph",
]


@dataclass(frozen=True)
class Leap:
    """A state that is predicted from an earlier one by the velocities of a few calls.

        zhat = z_start + sum_i l_i v_i

    Args:
        start: the call whose input is the start.
        target: the call whose input is predicted; the number of calls for the final state.
        weights: l_i by call.
    """

    start: int
    target: int
    weights: Mapping[int, float]


@dataclass(frozen=True)
class Plan:
    """The calls that a method differentiates in one sampling, and their weights.

    Args:
        weights: w_i by call, of xhat.
        cut: j, the call whose input keeps a part of its gradient; None where there is none.
        coupling: a, that part.
        inner: m_i by call, of zhat_j.
        leaps: predictions whose distances d from the sampled states divide each sample's gradient by
            sum max(d, floor), with d = mean |x - xhat|; none where the gradient is not scaled.
        floor: see `leaps`.
    """

    weights: Mapping[int, float]
    cut: int | None = None
    coupling: float = 0.0
    inner: Mapping[int, float] = field(default_factory=dict)
    leaps: tuple[Leap, ...] = ()
    floor: float = 0.0


class Quadrature:
    """The weights with which the steps of a sampler add up its velocities, each taken as a number of its own.

        z_j = ... + sum_{i < j} W_ji v_i

    A step is linear in states and velocities, so the weights are derivatives of the step loop on numbers.

    Args:
        ivp: the problem.
    """

    def __init__(self, ivp: IVP) -> None:
        self.taus: list[float] = []
        self._inputs: list[Tensor] = []
        self._units: list[Tensor] = []
        grid = TimeGrid(ivp.grid.schedule, ivp.grid.times.detach())

        def f(state: State, time: Time) -> State:
            self.taus.append(float(time.tau))
            self._inputs.append(state[0])
            self._units.append(torch.zeros(1, 1, dtype=torch.float64, requires_grad=True))
            return (self._units[-1],)

        with torch.enable_grad():
            (end,) = integrate(f, (torch.zeros(1, 1, dtype=torch.float64),), grid, ivp.solver)
        self._inputs.append(end)
        self.end = float(grid[len(grid)].tau)

    @property
    def calls(self) -> int:
        """The number of calls."""
        return len(self._units)

    @property
    def useful(self) -> list[int]:
        """The calls whose velocity the final state depends on, states apart; all of them with most solvers.

        The first stage of `Midpoint` is none, since it only leads to the second one's state.
        """
        return [i for i, weight in enumerate(self.weights(self.calls)) if weight]

    def weights(self, target: int) -> list[float]:
        """W_ji for every i.

        Args:
            target: j, the number of a call, or the number of calls for the final state.

        Returns:
            the weights of all calls, 0 for those that the state does not depend on.
        """
        out = self._inputs[target]
        if not out.requires_grad:
            return [0.0] * self.calls
        found = torch.autograd.grad(out, self._units, torch.ones_like(out), True, materialize_grads=True)
        return torch.cat(found).flatten().tolist()

    def refuse_leaps(self, ivp: IVP, adjoint: Adjoint) -> None:
        """Raise where a leap over several steps means nothing.

        Args:
            ivp: the problem.
            adjoint: the adjoint that leaps, for the message.

        Raises:
            InputError: the solver adds noise, or evaluates the velocity more than once a step.
        """
        if ivp.solver.drift != 1 or self.calls != len(ivp.grid):
            why = "adds noise in its steps" if ivp.solver.drift != 1 else "makes several calls a step"
            raise InputError(
                f"{adjoint!r} leaps over several steps along the ODE, and {ivp.solver!r} {why}; use a solver with one "
                "call a step and no noise, such as Euler() or DPMSolverPP(2), or an adjoint that follows the "
                'sampler\'s own steps: DRTune() or FlowBP(connector="sparse")'
            )


def equally_spaced(count: int, calls: int, choices: random.Random) -> list[int]:
    """Choose calls at equal distances, with a random offset.

    Args:
        count: how many; all calls if there are fewer.
        calls: the number of calls.
        choices: gives the offset.

    Returns:
        the numbers of the calls, increasing.
    """
    count = min(count, calls)
    stride = calls // count
    offset = choices.randint(0, calls - 1 - (count - 1) * stride)
    return [offset + i * stride for i in range(count)]


class Surrogate(Adjoint):
    """A gradient of weights and conditioning that leaves most of the trajectory's Jacobians out.

    The noise has no gradient, since these methods define none, and the time grid neither: both are refused.
    """

    seed: int
    """Decides the random choices, together with the noise of the sampling; see `draws`."""

    def in_pipeline(self) -> "DetachedCalls":
        """The same gradient for a pipeline's own scheduler, where the method needs nothing but its steps.

        Returns:
            the policy of each call.

        Raises:
            InputError: it needs more.
        """
        raise InputError(
            f"{self!r} needs steps of this library's own, and a pipeline takes its scheduler's; use "
            "FlowSampler.from_pipeline(pipe, adjoint=...) for it, or DRTune(early_stop=0.0), "
            'FlowBP(connector="sparse"), Truncated(last=) or Checkpointed() here'
        )

    def refuse(self, ivp: IVP) -> None:
        """Raise if a tensor requires a gradient that this adjoint does not make.

        Args:
            ivp: the problem.

        Raises:
            InputError: the noise or the time grid requires a gradient.
        """
        for name, tensor in (("the time grid", ivp.grid.times), ("the noise", ivp.initial)):
            if tensor.requires_grad:
                raise InputError(
                    f"{self!r} makes a gradient of weights and conditioning alone, so it has none for {name}; use "
                    f"Checkpointed(), or pass {name} without requires_grad"
                )


class Planned(Surrogate):
    """A surrogate of velocities on the sampled trajectory. Subclasses say which ones, with which weights."""

    @abstractmethod
    def plan(self, ivp: IVP, quadrature: Quadrature, choices: random.Random) -> Plan:
        """Choose the calls that are differentiated in one sampling.

        Args:
            ivp: the problem.
            quadrature: the weights of the sampler's own steps.
            choices: makes the random choices.

        Returns:
            the calls and their weights.

        Raises:
            InputError: the method cannot be used with this solver.
        """

    def solve(self, ivp: IVP, stats: Stats) -> Tensor:
        if not wants_gradient(ivp):
            return Backprop().solve(ivp, stats)
        self.refuse(ivp)
        quadrature = Quadrature(ivp)
        plan = self.plan(ivp, quadrature, draws(self.seed, ivp.initial))
        if not any(plan.weights.values()):
            raise InputError(
                f"{self!r} makes no gradient, since the result does not depend on the chosen calls "
                f"{sorted(plan.weights)} of {quadrature.calls}; give more steps or another seed"
            )
        rollout = Rollout(ivp, stats, plan)
        final = rollout.run()
        return followed(
            straight_through(final, total(plan.weights, rollout.made), rollout.factor(final)), ivp, stats
        )


class Rollout:
    """A sampling without a graph, but for the velocities of the calls of a plan.

    Args:
        ivp: the problem.
        stats: the record of the sampling.
        plan: the calls whose velocities have a graph, which is recomputed in the backward pass.
    """

    def __init__(self, ivp: IVP, stats: Stats, plan: Plan) -> None:
        self._ivp, self._plan = ivp, plan
        self.velocity = Velocity(ivp, stats)
        self.made: dict[int, Tensor] = {}
        # Of the calls that a leap begins with, ends at or adds up: inputs, velocities and times.
        self._states: dict[int, Tensor] = {}
        self._slopes: dict[int, Tensor] = {}
        self._times: dict[int, Time] = {}

    def run(self) -> Tensor:
        """The final state, without a graph."""
        plan, ivp = self._plan, self._ivp
        ends = {i for leap in plan.leaps for i in (leap.start, leap.target)}
        supports = {i for leap in plan.leaps for i in leap.weights}
        count = 0

        def f(state: State, time: Time) -> State:
            nonlocal count
            i, z = count, state[0]
            count += 1
            if i not in plan.weights:
                slope = self.velocity(z, time, GraphPolicy.NO_GRAPH)
            else:
                if i == plan.cut and plan.coupling:
                    z = straight_through(z, total(plan.inner, self.made), plan.coupling)
                self.made[i] = self.velocity(z, time, GraphPolicy.RECOMPUTE)
                slope = self.made[i].detach()
            if i in ends:
                self._states[i], self._times[i] = z.detach(), time
            if i in supports:
                self._slopes[i] = slope
            return (slope,)

        with torch.no_grad():
            return integrate(f, (ivp.initial,), ivp.grid, ivp.solver)[0]

    def factor(self, final: Tensor) -> Tensor | float:
        """The number by which each sample's gradient is multiplied, 1 where the plan has no leaps.

        Args:
            final: the final state.

        Returns:
            1, or 1 / sum max(d, floor), (batch, 1, ...).
        """
        if not self._plan.leaps:
            return 1.0
        distance = torch.zeros(len(final), dtype=final.dtype, device=final.device)
        for leap in self._plan.leaps:
            reached = self._states.get(leap.target, final)
            time = self._times.get(leap.target, self._ivp.grid[len(self._ivp.grid)])
            predicted = self._states[leap.start] + total(leap.weights, self._slopes)
            away = (time.scale.detach() * (predicted - reached)).abs().flatten(1).mean(1)
            distance = distance + away.clamp(min=self._plan.floor)
        return widened(1 / distance, final)


class Velocity:
    """The velocity of a problem, each evaluation counted and made as its policy says.

    Args:
        ivp: the problem.
        stats: the record of the sampling.
    """

    def __init__(self, ivp: IVP, stats: Stats) -> None:
        self._accounting = CallAccounting(stats, [*ivp.cond.values(), *ivp.flow.denoiser.parameters()])
        self._recomputation = Recomputation(ivp.flow.denoiser)
        self._ivp = ivp.wrapped(
            lambda each: Evaluated(each, self._accounting, self._recomputation, ivp.influence)
        )
        if ivp.influence is not None:  # no gradient passes through the states
            ivp.influence.leave_state_out()

    def __call__(self, z: Tensor, time: Time, policy: GraphPolicy) -> Tensor:
        """Evaluate the velocity.

        Args:
            z: the state, (batch, *shape).
            time: the instant.
            policy: what happens to the graph.

        Returns:
            dz/dtau, (batch, *shape).
        """
        if policy is GraphPolicy.RECOMPUTE:
            self._recomputation.begin(self._accounting.call)
        self._accounting.begin(policy)
        with torch.set_grad_enabled(policy is not GraphPolicy.NO_GRAPH):
            return self._ivp.velocity(z, time)


def total(weights: Mapping[int, float], terms: Mapping[int, Tensor]) -> Tensor:
    """Add up tensors: sum_i w_i v_i.

    Args:
        weights: w_i by number.
        terms: v_i by number; each number of `weights` is among them.

    Returns:
        the sum.
    """
    with torch.enable_grad():
        return sum(
            (w * terms[i] for i, w in weights.items()), torch.zeros(()).to(next(iter(terms.values())))
        )


def straight_through(value: Tensor, carrier: Tensor, factor: Tensor | float = 1.0) -> Tensor:
    """A value with the gradient of another tensor: carrier + sg(value - carrier), without its rounding.

    Args:
        value: the value, whose own graph is left out.
        carrier: of the same shape; receives the gradient.
        factor: multiplies the gradient; a number, or one of each sample.

    Returns:
        the bits of `value`.
    """
    with torch.enable_grad():
        return _StraightThrough.apply(value, carrier, factor)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, carrier: Tensor, factor: Tensor | float) -> Tensor:
        ctx.factor = factor
        return value.clone()

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return None, ctx.factor * cotangent, None


def followed(final: Tensor, ivp: IVP, stats: Stats) -> Tensor:
    """The final state, whose cotangent is recorded and checked as those of other adjoints are.

    Args:
        final: the state.
        ivp: the problem.
        stats: receives the norm of the cotangent.

    Returns:
        `final`.
    """
    CotangentNorms(stats, ivp.grid).follow(final, ivp.grid[len(ivp.grid)])
    return final


@dataclass(frozen=True)
class DetachedCalls(Discrete):
    """A few calls of a pipeline's denoiser, differentiated at states without a graph.

        x_{i+1} = step(x_i, v_i),     v_i = v(sg(x_i)) for the chosen calls, sg(v_i) for the others

    The scheduler's own steps carry the gradient on.

    Args:
        origin: the adjoint that this is, for messages.
        choose: chooses calls, of so many, with the help of a generator.
        seed: see `draws`.
        chosen: the chosen calls; None until the sampling has begun.
    """

    origin: Adjoint
    choose: Callable[[int, random.Random], Sequence[int]]
    seed: int
    chosen: frozenset[int] | None = None

    detached = True

    def __repr__(self) -> str:
        return repr(self.origin)

    def drawn(self, state: Tensor, calls: int) -> "DetachedCalls":
        chosen = frozenset(self.choose(calls, draws(self.seed, state)))
        return DetachedCalls(self.origin, self.choose, self.seed, chosen)

    def policy(self, i: int, calls: int, graph: int | None) -> GraphPolicy:
        return GraphPolicy.RECOMPUTE if i in (self.chosen or ()) else GraphPolicy.NO_GRAPH


def without_state_graph(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a denoiser's call, its state without a graph.

    Args:
        args: the positional arguments; the state is the first of all arguments.
        kwargs: the keyword arguments.

    Returns:
        both.
    """
    if args:
        return (_detached(args[0]), *args[1:]), kwargs
    first = next(iter(kwargs), None)
    return args, kwargs if first is None else {**kwargs, first: _detached(kwargs[first])}


def _detached(state: Any) -> Any:
    return tree_map(lambda each: each.detach() if isinstance(each, Tensor) else each, state)
