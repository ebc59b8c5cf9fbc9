"""The gradient of the flow, on fewer nodes than the sampling had.

With a = dL/dz, f = dz/dtau and theta the weights (AdjointDPM, Pan et al., 2024, arXiv 2307.10711):

    da/dtau       = -a^T df/dz          a(end) = dL/dz(end)
    da_c/dtau     = -a^T df/dc          a_c(end) = 0
    da_theta/dtau = -a^T df/dtheta      a_theta(end) = 0

The paper discretizes this by a solver of its own, backwards. The transposed form discretizes the flow
itself, linearized at the remembered states, by a solver on M of the N nodes, and takes the transpose:

    dz_{k+1} = A_k dz_k + sum_j w_{k,j} e_{k-j},     e_k = (df/dz)(z_k) dz_k
    mu_k     = sum_j w_{k+j,j} a_{k+j+1},            a_k = A_k^T a_{k+1} + (df/dz)^T mu_k

Along the path of an SDE the adjoint stays an ODE, since the noise does not depend on z; its right sides
are those of the SDE's drift (AdjointDEIS; Blasingame and Liu, 2024, arXiv 2405.15020).

It is the exact gradient of that coarser solver's linearization: of the sampler itself for M = N and its
own solver, and in between it has no error of the kind that taking products at the wrong end of a step has.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .._types import InputError, State, Stats, Time
from ..flow.grids import TimeGrid, coarser, even_nodes
from ..solvers import Solver
from ..solvers.integrate import IVP, integrate
from .base import Adjoint, wants_gradient
from .discrete import Backprop
from .interpolation import Evaluations, Interpolation
from .vjp import VJP, Leaves

__all__ = ["Continuous"]


@dataclass(frozen=True)
class Continuous(Adjoint):
    """The gradient of the flow by a backward pass with its own solver and steps.

        N f + M (f + b) of time for N steps forward and M back;  N states, or one, and one graph of memory

    Use it to reproduce the paper, or where `compare` has shown on several noises of your own model that fewer steps
    back are enough. How far they are off depends on the model and on the noise, from a hundredth of the gradient's
    length to many times it, and there is no sign of it in the run itself; below 50 sampling steps expect the worst.
    With `steps=None` and the sampler's own solver it is exact, and `Checkpointed` is too, with fewer limits.

    Args:
        steps: M <= N, the number of backward steps; as many as forward if None. Nodes are forward
            nodes, see `nodes` (paper's form: at equal fractions of the forward grid).
        solver: the backward scheme; the sampler's own if None.
        trajectory: "stored" remembers the forward states, and the slopes where they are needed;
            "resolved" is the paper's form and solves for the state again, backwards, in the memory of
            one state, which adds an error of its own and can drift far at high guidance.
        transposed: the transpose of a coarser solver; False is the paper's augmented ODE, whose gradient is
            off by a multiple of the step also for M = N. `Continuous(solver=Euler(),
            trajectory="resolved")` is what the paper's release runs.
        tolerance: choose M instead: the fewest steps (of N/5, N/4, N/3, N/2, N) whose own quadrature of
            the remembered slopes ends within this distance of the state that sampling reached, relative
            to its norm. It costs no denoiser call. `stats.error_estimate` reports it, and
            `stats.backward_steps` M. It tells of the discretization of the sampling and does not bound the
            gradient's error, which can be larger by any factor: `compare` measures that.
        rescale: scale cotangents by powers of two on their way through a network in float16.
    Raises:
        InputError: bad arguments; more backward than forward steps; a gradient of the time grid; a
            denoiser that depends on tensors captured by a closure, or holds sharded weights (DTensor).
        NonFiniteError: in the backward pass, naming the step.
    """

    steps: int | None = None
    solver: Solver | None = None
    trajectory: Literal["stored", "resolved"] = "stored"
    transposed: bool = True
    tolerance: float | None = None
    rescale: bool = False

    def __post_init__(self) -> None:
        if self.steps is not None and self.steps < 1:
            raise InputError(f"steps, the backward steps, must be at least 1, but is {self.steps}")
        if self.trajectory not in ("stored", "resolved"):
            raise InputError(f'trajectory is "stored" or "resolved", but {self.trajectory!r} was given')
        if self.tolerance is None:
            return
        if self.steps is not None:
            raise InputError("give steps or tolerance, not both: the tolerance decides how many steps")
        if not self.tolerance > 0:
            raise InputError(f"tolerance is a positive number, but is {self.tolerance}")
        if self.trajectory == "resolved" or not self.transposed:
            raise InputError(
                "tolerance needs the transposed form over stored states; leave both as they are"
            )

    @property
    def is_transposed(self) -> bool:
        """Whether the transpose of a coarser solver is taken, which needs the stored states."""
        return self.transposed and self.trajectory == "stored"

    def solve(self, ivp: IVP, stats: Stats) -> Tensor:
        if not wants_gradient(ivp):
            return Backprop().solve(ivp, stats)  # the plain loop, and no graph to keep
        if self.is_transposed and self.steps is not None and self.steps > len(ivp.grid):
            raise InputError(
                f"Continuous(steps={self.steps}) has more backward steps than the {len(ivp.grid)} forward; "
                "give at most as many, or transposed=False"
            )
        if not self.is_transposed:
            ivp.refuse_meaningless(ivp.grid[len(ivp.grid)])  # where the backward pass begins
        if ivp.solver.drift != 1:
            self._refuse_on_a_path(ivp)
        leaves = Leaves(ivp, "Continuous")
        return _Flow.apply(self, ivp, stats, leaves, ivp.initial, *leaves.tensors)

    def _refuse_on_a_path(self, ivp: IVP) -> None:
        if self.is_transposed:
            if self.solver is not None and self.solver.drift != ivp.solver.drift:
                raise InputError(
                    f"{self.solver!r} does not solve the SDE that {ivp.solver!r} sampled; leave solver=None, or use "
                    "transposed=False"
                )
            if self.tolerance is not None:
                raise InputError(
                    f"a coarser {ivp.solver!r} draws other noise, so its distance says nothing; give steps= instead "
                    "of tolerance="
                )
            return
        if self.trajectory == "resolved":
            raise InputError(
                f"the states of {ivp.solver!r} cannot be solved for again, since the flow backwards knows nothing "
                'of its noise; use trajectory="stored"'
            )
        if self.solver is None or self.solver.drift != 1 or self.solver.calls(1) != 1:
            raise InputError(
                "the paper's form along a noisy path needs a backward solver of one call a step, such as "
                f"solver=Euler() or AdamsBashforth(2), but got {self.solver!r}; or use transposed=True"
            )

    def memory(self, ivp: IVP) -> Interpolation:
        """What the forward pass has to remember."""
        same = self.solver is None or self.solver == ivp.solver
        if self.is_transposed and same and self.tolerance is None and self.steps in (None, len(ivp.grid)):
            return Evaluations()
        return Interpolation()

    def needs_slopes(self, ivp: IVP) -> bool:
        """Whether a state is asked for between nodes, or slopes for the estimate."""
        solver = ivp.solver if self.solver is None else self.solver
        return not self.transposed or self.tolerance is not None or solver.calls(4) != 4

    def backward_grid(self, ivp: IVP, trajectory: Interpolation, stats: Stats) -> TimeGrid:
        """The nodes of the transposed solver, from the noise to the clean end."""
        N = len(ivp.grid)
        solver = ivp.solver if self.solver is None else self.solver
        if self.tolerance is None:
            M = N if self.steps is None else self.steps
            stats.backward_steps = M
            return ivp.grid if M == N else coarser(ivp.grid, even_nodes(ivp.grid, M))
        grid = ivp.grid
        for M in sorted({max(1, round(N / part)) for part in (5, 4, 3, 2, 1)}):
            grid = ivp.grid if M == N else coarser(ivp.grid, even_nodes(ivp.grid, M))
            stats.backward_steps, stats.error_estimate = M, _quadrature_error(trajectory, grid, solver)
            if stats.error_estimate <= self.tolerance:
                break
        return grid


def _quadrature_error(trajectory: Interpolation, grid: TimeGrid, solver: Solver) -> float:
    """How far a coarser solver ends from the sampler, both with the slopes that the sampler saw."""
    start, end = trajectory(grid[0]), trajectory(grid[len(grid)])
    (reached,) = integrate(lambda time, state: (trajectory.slope(time),), (start,), grid, solver)
    return float((reached - end).norm() / end.norm().clamp(min=torch.finfo(end.dtype).tiny))


class _Flow(torch.autograd.Function):
    """z(end) of the IVP, with a backward pass that makes one graph at a time.

    Every tensor that the result depends on is an input, and its cotangent an output: nothing is
    written to `.grad`, so hooks of wrappers such as DDP fire as for any other operation.
    """

    @staticmethod
    def forward(
        ctx: Any,
        adjoint: Continuous,
        ivp: IVP,
        stats: Stats,
        leaves: Leaves,
        initial: Tensor,
        *tensors: Tensor,
    ) -> Tensor:
        products = VJP(ivp, stats, leaves, adjoint.rescale)
        ready = [products.check(ivp.grid[0], initial)]
        trajectory = adjoint.memory(ivp)
        stored = adjoint.trajectory == "stored"
        slopes = stored and (adjoint.needs_slopes(ivp) or isinstance(trajectory, Evaluations))

        def f(time: Time, state: State) -> State:
            # The check has already made the first evaluation, which is at the first node.
            slope = ready.pop() if ready else ivp.velocity(time, state[0], products.run)
            products.made(time, state[0], slope)
            if slopes:
                trajectory.add_slope(time, state[0], slope)
            return (slope,)

        def observe(i: int, state: State) -> None:
            if stored:
                trajectory.add_state(ivp.grid[i], *state)

        (final,) = integrate(f, (initial,), ivp.grid, ivp.solver, observe)
        ctx.adjoint, ctx.ivp, ctx.stats = adjoint, ivp, stats
        ctx.products, ctx.trajectory = products, trajectory
        ctx.save_for_backward(initial, final, *tensors)
        stats.states = final.nbytes + (trajectory.nbytes or initial.nbytes)
        if adjoint.is_transposed:
            ctx.grid = adjoint.backward_grid(ivp, trajectory, stats)
        return final

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        initial, final, *leaves = ctx.saved_tensors
        solve = _transposed if ctx.adjoint.is_transposed else _augmented
        found = solve(ctx, final, cotangent, leaves)
        ctx.products.probe(initial)
        return None, None, None, None, *found


def _transposed(ctx: Any, final: Tensor, cotangent: Tensor, leaves: list[Tensor]) -> State:
    """Plain autograd through the coarser solver, whose every slope is linear in its state.

    The value at which a linear map is differentiated does not matter, so the solver runs on zeros and no
    denoiser is called on the way forward.
    """
    solver = ctx.ivp.solver if ctx.adjoint.solver is None else ctx.adjoint.solver
    trace = ctx.products.trace
    with torch.enable_grad():
        dz = torch.zeros_like(final).requires_grad_()
        copies = [leaf.detach().requires_grad_() for leaf in leaves]

        def f(time: Time, state: State) -> State:
            z = ctx.trajectory(time)
            return (_Linear.apply(ctx.products, time, z, leaves, state[0], *copies),)

        def observe(i: int, state: State) -> None:
            trace.follow(ctx.grid[i], state[0])

        (end,) = integrate(f, (dz,), ctx.grid, solver, observe)
    return torch.autograd.grad(end, [dz, *copies], cotangent, materialize_grads=True)


class _Linear(torch.autograd.Function):
    """The velocity linearized at a remembered state: no value, only products.

    The denoiser holds `leaves` themselves; their `copies` are where autograd adds up what they get.
    """

    @staticmethod
    def forward(
        ctx: Any,
        products: VJP,
        time: Time,
        z: Tensor,
        leaves: list[Tensor],
        dz: Tensor,
        *copies: Tensor,
    ) -> Tensor:
        ctx.products, ctx.time, ctx.z, ctx.leaves = products, time, z, leaves
        return torch.zeros_like(dz)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, mu: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return None, None, None, None, *ctx.products(ctx.time, ctx.z, mu, ctx.leaves)[1:]


def _augmented(ctx: Any, final: Tensor, cotangent: Tensor, leaves: list[Tensor]) -> State:
    """The paper's form: the ODE of (a, a_c, a_theta), and of z where it was not remembered."""
    products: VJP = ctx.products
    adjoint: Continuous = ctx.adjoint
    solver = ctx.ivp.solver if adjoint.solver is None else adjoint.solver
    grid = ctx.ivp.grid.reversed()
    if adjoint.steps is not None and adjoint.steps != len(grid):
        noisy = ctx.ivp.solver.drift != 1  # a path with noise is known at its nodes alone
        nodes = even_nodes(ctx.ivp.grid, adjoint.steps) if noisy else []
        grid = coarser(ctx.ivp.grid, nodes).reversed() if noisy else grid.resampled(adjoint.steps)
    ctx.stats.backward_steps = len(grid)
    zeros = tuple(torch.zeros_like(leaf) for leaf in leaves)
    stored = adjoint.trajectory == "stored"

    def f(time: Time, state: State) -> State:
        z, a = (ctx.trajectory(time), state[0]) if stored else state[:2]
        slope, *pulled = products(time, z, a, leaves)
        drift = ctx.ivp.solver.drift
        return (*(() if stored else (slope,)), *(-drift * each for each in pulled))

    def observe(i: int, state: State) -> None:
        products.trace.record(grid[i], state[0] if stored else state[1])

    start = (cotangent, *zeros) if stored else (final, cotangent, *zeros)
    end = integrate(f, start, grid, solver, observe)
    return end if stored else end[1:]
