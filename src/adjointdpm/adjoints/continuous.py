"""Optimise, then discretise: the paper's adjoint ODE, in coordinates without a stiff part.

With a = dL/dz, f = dz/dtau and theta the weights (AdjointDPM, Pan et al., 2024, arXiv 2307.10711):

    da/dtau       = -a^T df/dz          a(end) = dL/dz(end)
    da_c/dtau     = -a^T df/dc          a_c(end) = 0
    da_theta/dtau = -a^T df/dtheta      a_theta(end) = 0

solved from the clean end back to the noise, where a, a_c and a_theta are the gradients.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .._types import Derivative, InputError, State, Stats, Time
from ..ivp import IVP, integrate
from ..solvers import AdamsBashforth, Solver
from .base import Adjoint, wants_gradient
from .discrete import Backprop
from .meter import SavedBytes
from .trajectory import Trajectory

__all__ = ["Continuous"]


@dataclass(frozen=True)
class Continuous(Adjoint):
    """The gradient of AdjointDPM: the augmented ODE, solved backwards with its own solver and steps.

    Its gradient is that of the exact flow, not of the sampler that ran, and converges to it at the
    backward solver's order; at the coarse steps and high guidance of image sampling the difference is
    visible (see `compare`). Use it when fewer backward than forward steps are wanted, or to reproduce
    the paper; otherwise `Checkpointed` is exact at about the same cost.

        N f + M (f + b) of time for N steps forward and M back;  N states, or one, and one graph of memory

    Args:
        steps: M, the number of backward steps; as many as forward if None. Nodes lie at equal
            fractions of the forward grid.
        solver: the backward scheme; Adams-Bashforth of order 2 by default. `Euler()` with
            `trajectory="resolved"` is what the paper's release runs.
        trajectory: "stored" remembers the forward states and slopes (two latents a step) and
            interpolates between them; "resolved" solves for the state again, backwards, in the memory
            of one state, which adds an error of its own and can drift far at high guidance.
    Raises:
        InputError: bad arguments; a gradient of the time grid; a denoiser that depends on tensors
            captured by a closure, or holds weights that are sharded (DTensor).
    """

    steps: int | None = None
    solver: Solver = AdamsBashforth(2)  # noqa: RUF009, it is frozen
    trajectory: Literal["stored", "resolved"] = "stored"

    def __post_init__(self) -> None:
        if self.steps is not None and self.steps < 1:
            raise InputError(f"steps, the backward steps, must be at least 1, but is {self.steps}")
        if self.trajectory not in ("stored", "resolved"):
            raise InputError(f'trajectory is "stored" or "resolved", but {self.trajectory!r} was given')

    def solve(self, ivp: IVP, stats: Stats) -> Tensor:
        if not wants_gradient(ivp):
            return Backprop().solve(ivp, stats)  # the plain loop, and no graph to keep
        weights: list[Tensor] = [p for p in ivp.flow.denoiser.parameters() if p.requires_grad]
        _refuse(ivp, weights)
        names = [name for name, tensor in ivp.cond.items() if tensor.requires_grad]
        conds = [ivp.cond[name] for name in names]
        return _AdjointODE.apply(self, ivp, stats, names, ivp.initial, *conds, *weights)


def _refuse(ivp: IVP, weights: list[Tensor]) -> None:
    if ivp.grid.times.requires_grad:
        raise InputError("Continuous has no gradient for the time grid; use Checkpointed()")
    if any(hasattr(weight, "full_tensor") for weight in weights):
        raise InputError(
            "Continuous cannot return gradients to sharded (DTensor) weights; use Checkpointed(), "
            "or freeze the weights"
        )


class _AdjointODE(torch.autograd.Function):
    """z(end) of the IVP, whose backward is the augmented ODE.

    Every tensor that the result depends on is an input, and its cotangent an output: nothing is
    written to `.grad`, so hooks of wrappers such as DDP fire as for any other operation.
    """

    @staticmethod
    def forward(
        ctx: Any,
        adjoint: Continuous,
        ivp: IVP,
        stats: Stats,
        names: list[str],
        initial: Tensor,
        *leaves: Tensor,
    ) -> Tensor:
        field = _Field(ivp, stats, names, leaves[len(names) :])
        ready = [field.check(ivp.grid[0], initial, leaves[: len(names)])]
        trajectory = Trajectory()
        stored = adjoint.trajectory == "stored"

        def f(time: Time, state: State) -> State:
            # The check has already made the first evaluation, which is at the first node.
            slope = ready.pop() if ready else ivp.velocity(time, state[0], field.run)
            if stored:
                trajectory.add_slope(slope)
            return (slope,)

        def observe(i: int, state: State) -> None:
            if stored:
                trajectory.add_state(ivp.grid[i], *state)

        (final,) = integrate(f, (initial,), ivp.grid, ivp.solver, observe)
        ctx.adjoint, ctx.field, ctx.trajectory, ctx.grid = adjoint, field, trajectory, ivp.grid
        ctx.autocast = _autocast(initial.device.type)
        ctx.save_for_backward(final, *leaves)
        stats.states = final.nbytes + trajectory.nbytes
        return final

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        final, *leaves = ctx.saved_tensors
        adjoint: Continuous = ctx.adjoint
        grid = ctx.grid.reversed()
        if adjoint.steps is not None and adjoint.steps != len(grid):
            grid = grid.resampled(adjoint.steps)
        a_leaves = tuple(torch.zeros_like(leaf) for leaf in leaves)
        with ctx.autocast():
            if adjoint.trajectory == "stored":
                f = ctx.field.given(ctx.trajectory, leaves)
                a, *a_leaves = integrate(f, (cotangent, *a_leaves), grid, adjoint.solver)
            else:
                f = ctx.field.augmented(leaves)
                _, a, *a_leaves = integrate(f, (final, cotangent, *a_leaves), grid, adjoint.solver)
        return None, None, None, None, a, *a_leaves


def _autocast(device: str) -> Callable[[], torch.autocast]:
    """The autocast in force now, to be entered again: a backward pass runs outside of the user's."""
    return partial(
        torch.autocast,
        device,
        dtype=torch.get_autocast_dtype(device),
        enabled=torch.is_autocast_enabled(device),
        cache_enabled=torch.is_autocast_cache_enabled(),
    )


class _Field:
    """The IVP's velocity and its vector-Jacobian products with z, conditioning and weights."""

    def __init__(self, ivp: IVP, stats: Stats, names: list[str], weights: tuple[Tensor, ...]) -> None:
        self._ivp = ivp
        self._names, self._weights, self._stats = names, weights, stats
        self._shared = [*ivp.cond.values(), *ivp.flow.denoiser.parameters()]

    def run(self, fn: Any, *tensors: Tensor) -> Tensor:
        """One counted call of the denoiser."""
        self._stats.nfe_forward += 1
        return fn(*tensors)

    def _graph(self, time: Time, z: Tensor, conds: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        z = z.detach().requires_grad_()
        conds = [cond.detach().requires_grad_() for cond in conds]
        cond = self._ivp.cond.replace(**dict(zip(self._names, conds, strict=True)))
        with torch.enable_grad():
            slope = replace(self._ivp, cond=cond).velocity(time, z, self.run)
        return slope, [z, *conds]

    def check(self, time: Time, z: Tensor, conds: tuple[Tensor, ...]) -> Tensor:
        """The velocity, once it is sure that every tensor it depends on is one we differentiate."""
        with SavedBytes(self._shared) as saved:
            slope, inputs = self._graph(time, z, list(conds))
        self._stats.measured &= saved.bytes is not None
        self._stats.recomputed = saved.bytes or 0
        known = {id(tensor) for tensor in (*inputs, *self._weights)}
        strangers = [leaf for leaf in _leaves(slope) if id(leaf) not in known]
        if strangers:
            shapes = ", ".join(str(tuple(leaf.shape)) for leaf in strangers[:3])
            raise InputError(
                f"the denoiser depends on {len(strangers)} differentiable tensors (shape {shapes}) "
                "that are neither in the conditioning nor among its parameters, so Continuous would "
                "lose their gradient: register them as nn.Parameter or pass them in the Cond, or use "
                "Checkpointed()"
            )
        return slope.detach()

    def _products(self, time: Time, z: Tensor, a: Tensor, leaves: list[Tensor]) -> State:
        """(f, -a^T df/dz, -a^T df/dc, -a^T df/dtheta) at one instant."""
        slope, inputs = self._graph(time, z, leaves[: len(self._names)])
        self._stats.nfe_backward += 1
        targets = [*inputs, *leaves[len(self._names) :]]
        products = torch.autograd.grad(slope, targets, -a, materialize_grads=True)
        return slope.detach(), *products

    def given(self, trajectory: Trajectory, leaves: list[Tensor]) -> Derivative:
        """The augmented ODE along remembered states."""
        return lambda time, state: self._products(time, trajectory(time), state[0], leaves)[1:]

    def augmented(self, leaves: list[Tensor]) -> Derivative:
        """The augmented ODE with the state as its first component."""
        return lambda time, state: self._products(time, state[0], state[1], leaves)


def _leaves(tensor: Tensor) -> list[Tensor]:
    """The leaf tensors that a result's graph ends in."""
    found, queue, seen = [], [tensor.grad_fn], set()
    while queue:
        node = queue.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None:
            found.append(leaf)
        queue.extend(parent for parent, _ in node.next_functions)
    return found
