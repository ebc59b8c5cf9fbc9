"""The exact gradient of a coarser solver on M of the sampling's N nodes, linearized at the stored states.

    dz_{k+1} = A_k dz_k + sum_j w_{k,j} e_{k-j},     e_k = (df/dz)(z_k) dz_k
    mu_k     = sum_j w_{k+j,j} a_{k+j+1},            a_k = A_k^T a_{k+1} + (df/dz)^T mu_k

The first line is the coarser solver applied to the flow's linearization, f = dz/dtau; the second is its transpose, the
backward pass. With M = N and the sampler's own solver it is the gradient of the sampler itself. In between it has no
error of the kind that taking products at the wrong end of a step has (see `continuous`).

Along the path of an SDE the adjoint stays an ODE, since the noise does not depend on z; its right sides are those of
the SDE's drift (AdjointDEIS; Blasingame and Liu, 2024, arXiv 2405.15020).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .._types import InputError, State, Stats, Time
from ..flow.grids import TimeGrid, coarser, even_nodes
from ..solvers import Solver
from ..solvers.integrate import IVP, integrate
from .interpolation import Evaluations, Interpolation
from .separate_backward import SeparateBackward
from .vjp import VJP

__all__ = ["CoarseAdjoint"]


@dataclass(frozen=True)
class CoarseAdjoint(SeparateBackward):
    """The transpose of a solver on M of the sampling's N nodes.

        N f + M (f + b) of time for N steps forward and M back;  N states and one graph of memory

    Use it where `compare` has shown, on several noises of your own model, that fewer steps back are enough. How far
    they are off depends on the model and on the noise, from a hundredth of the gradient's length to many times it, and
    there is no sign of it in the run itself; below 50 sampling steps expect the worst. With `steps=None` and the
    sampler's own solver it is exact, and `Checkpointed` is too, with fewer limits.

    Args:
        steps: M, with 1 <= M <= N, the number of backward steps; as many as forward if None. Nodes are forward nodes,
            see `flow.grids.even_nodes`.
        solver: the backward scheme; the sampler's own if None.
        tolerance: choose M instead: the fewest steps (of N/5, N/4, N/3, N/2, N) whose own quadrature of the stored
            slopes ends within this distance of the state that the sampling reached, relative to its norm. It costs no
            denoiser call. `stats.error_estimate` reports the distance, and `stats.backward_steps` M. It is about the
            discretization of the sampling and does not bound the gradient's error, which can be larger by any factor:
            `compare` measures that.
        rescale: scale cotangents by powers of two on their way through a network in float16.

    Raises:
        InputError: bad arguments; more backward than forward steps; a gradient of the time grid; a denoiser that
            depends on tensors captured by a closure, or holds sharded weights (DTensor).
        NonFiniteError: in the backward pass, naming the step.

    Examples:
        >>> import adjointdpm as adp
        >>> sampler = adp.load_bundled("emoji", steps=50, adjoint=adp.CoarseAdjoint(steps=15))
        >>> sampler.adjoint.steps
        15
    """

    steps: int | None = None
    solver: Solver | None = None
    tolerance: float | None = None
    rescale: bool = False

    def __post_init__(self) -> None:
        if self.steps is not None and self.steps < 1:
            raise InputError(f"steps, the backward steps, must be at least 1, but is {self.steps}")
        if self.tolerance is None:
            return
        if self.steps is not None:
            raise InputError("give steps or tolerance, not both: the tolerance decides how many steps")
        if not self.tolerance > 0:
            raise InputError(f"tolerance is a positive number, but is {self.tolerance}")

    def check(self, ivp: IVP) -> None:
        if self.steps is not None and self.steps > len(ivp.grid):
            raise InputError(
                f"CoarseAdjoint(steps={self.steps}) has more backward steps than the {len(ivp.grid)} forward; "
                "give at most as many"
            )
        if ivp.solver.drift == 1:
            return
        if self.solver is not None and self.solver.drift != ivp.solver.drift:
            raise InputError(
                f"{self.solver!r} does not solve the SDE that {ivp.solver!r} sampled; leave solver=None, or use "
                "Continuous(solver=...)"
            )
        if self.tolerance is not None:
            raise InputError(
                f"a coarser {ivp.solver!r} draws other noise, so its distance says nothing; give steps= instead "
                "of tolerance="
            )

    def memory(self, ivp: IVP) -> Interpolation:
        same = self.solver is None or self.solver == ivp.solver
        if same and self.tolerance is None and self.steps in (None, len(ivp.grid)):
            return Evaluations()
        return Interpolation()

    def needs_slopes(self, ivp: IVP) -> bool:
        # A state is asked for between nodes, or slopes for the estimate.
        return self.tolerance is not None or self.solver_of(ivp).calls(4) != 4

    def prepare(self, ctx: Any) -> None:
        ctx.grid = self._backward_grid(ctx.ivp, ctx.trajectory, ctx.stats)

    def _backward_grid(self, ivp: IVP, trajectory: Interpolation, stats: Stats) -> TimeGrid:
        """The nodes of the coarser solver, from the noise to the clean end."""
        N = len(ivp.grid)
        if self.tolerance is None:
            M = N if self.steps is None else self.steps
            stats.backward_steps = M
            return ivp.grid if M == N else coarser(ivp.grid, even_nodes(ivp.grid, M))
        grid, solver = ivp.grid, self.solver_of(ivp)
        for M in sorted({max(1, round(N / part)) for part in (5, 4, 3, 2, 1)}):
            grid = ivp.grid if M == N else coarser(ivp.grid, even_nodes(ivp.grid, M))
            stats.backward_steps, stats.error_estimate = M, _quadrature_error(trajectory, grid, solver)
            if stats.error_estimate <= self.tolerance:
                break
        return grid

    def backward(self, ctx: Any, final: Tensor, cotangent: Tensor, leaves: list[Tensor]) -> State:
        # Plain autograd through the coarser solver, whose every slope is linear in its state. The value at which a
        # linear map is differentiated does not matter, so the solver runs on zeros and no denoiser is called on the
        # way forward.
        solver = self.solver_of(ctx.ivp)
        trace = ctx.products.trace
        with torch.enable_grad():
            dz = torch.zeros_like(final).requires_grad_()
            copies = [leaf.detach().requires_grad_() for leaf in leaves]

            def f(state: State, time: Time) -> State:
                z = ctx.trajectory(time)
                return (_Linear.apply(ctx.products, z, time, leaves, state[0], *copies),)

            def observe(i: int, state: State) -> None:
                trace.follow(state[0], ctx.grid[i])

            (end,) = integrate(f, (dz,), ctx.grid, solver, observe)
        return torch.autograd.grad(end, [dz, *copies], cotangent, materialize_grads=True)


def _quadrature_error(trajectory: Interpolation, grid: TimeGrid, solver: Solver) -> float:
    """How far a coarser solver ends from the sampler, both with the slopes that the sampler saw."""
    start, end = trajectory(grid[0]), trajectory(grid[len(grid)])
    (reached,) = integrate(lambda state, time: (trajectory.slope(time),), (start,), grid, solver)
    return float((reached - end).norm() / end.norm().clamp(min=torch.finfo(end.dtype).tiny))


class _Linear(torch.autograd.Function):
    """The velocity linearized at a remembered state: no value, only products.

    The denoiser holds `leaves` themselves; their `copies` are where autograd adds up what they get.
    """

    @staticmethod
    def forward(
        ctx: Any,
        products: VJP,
        z: Tensor,
        time: Time,
        leaves: list[Tensor],
        dz: Tensor,
        *copies: Tensor,
    ) -> Tensor:
        ctx.products, ctx.time, ctx.z, ctx.leaves = products, time, z, leaves
        return torch.zeros_like(dz)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, mu: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return None, None, None, None, *ctx.products(ctx.z, ctx.time, mu, ctx.leaves)[1:]
