"""The gradient of an inversion, by the implicit function theorem, one step at a time.

The inversion solves S_i(z_i; c) = z_{i+1} for z_i, with S_i a step of the solver. With g_i the cotangent of z_i:

    (dS_i/dz)^T g_{i+1} = g_i          c_bar <- c_bar - (dS_i/dc)^T g_{i+1}

from the noisy end to the clean one. Each linear system is solved by GMRES with products of one step's graph, so the
memory is the states and that graph, whatever iterations found the states.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .._types import Derivative, State, Stats, Time
from ..solvers.fixed_point import gmres
from ..solvers.integrate import IVP
from ..solvers.inversion import InversionError, Trajectory, inverted
from .evaluation import Counted
from .recompute import autocast_now
from .vjp import Leaves

__all__ = ["cotangent_of", "inverse", "solution"]

_GRADIENT = 1e-6  # of GMRES in the backward pass
_PRODUCTS = 100
_ACCEPTED = 1e-4  # of the cotangent, where GMRES ends without reaching its aim
_AIM = 1e-4  # of the residual of each step, however large an error is accepted at the end


def _derivative(ivp: IVP) -> Derivative:
    def f(state: State, time: Time) -> State:
        return (ivp.velocity(state[0], time),)

    return f


def cotangent_of(product: Callable[[Tensor], Tensor], g: Tensor, instead: str) -> Tensor:
    """Solve A^T u = g as exactly as a gradient needs.

    Args:
        product: v to A^T v, of (batch, *shape).
        g: the right side, (batch, *shape).
        instead: a sentence that says what to change where it fails.

    Returns:
        u, (batch, *shape).

    Raises:
        InversionError: GMRES does not come near enough.
    """
    u, left = gmres(product, g, tolerance=_GRADIENT, most=_PRODUCTS)
    if not left <= _ACCEPTED:
        raise InversionError(
            f"the gradient of the inversion was not found: GMRES leaves {left:.1e} of the cotangent after "
            f"{_PRODUCTS} products, and {_ACCEPTED:g} is accepted. {instead}; or invert under torch.no_grad() if you "
            "need no gradient"
        )
    return u


def solution(ivp: IVP, stats: Stats, tolerance: float) -> Trajectory:
    """Find the states of an inversion, without a graph, and however far the iterations come.

    Args:
        ivp: the problem of the sampling; its `initial` holds the clean state.
        stats: counts the calls.
        tolerance: the residual of a step at which its iteration stops.

    Returns:
        the states and their residuals.
    """
    counted = ivp.wrapped(lambda each: Counted(each, stats, None))
    with torch.no_grad():
        return inverted(_derivative(counted), ivp.initial, ivp.grid, ivp.solver, tolerance)


def inverse(ivp: IVP, stats: Stats, tolerance: float) -> Tensor:
    """Find the state at the noisy end from which a sampling arrives at a clean one, differentiable.

    Args:
        ivp: the problem of the sampling; its `initial` holds the clean state, not the noisy one.
        stats: counts the calls; `drift` receives the distance of the sampling's end from the clean state.
        tolerance: the largest distance that is accepted, as a fraction of the clean state's norm.

    Returns:
        z at the first node, (batch, *shape).

    Raises:
        InputError: the solver cannot be inverted, or a gradient of the time grid is required.
        InversionError: the sampling does not come back to the clean state within the tolerance.
    """
    leaves = Leaves(ivp, "The inversion")
    return _Inverse.apply(ivp, stats, tolerance, leaves, ivp.initial, *leaves.tensors)


def _checked(ivp: IVP, stats: Stats, tolerance: float) -> Trajectory:
    """Return a trajectory after a sampling from its start came back."""
    counted = ivp.wrapped(lambda each: Counted(each, stats, None))
    f = _derivative(counted)
    found = None
    for aim in (min(0.1 * tolerance, _AIM), 0.01 * min(tolerance, _AIM)):
        found = solution(ivp, stats, aim)
        state: State = (found.states[0],)
        for i in range(len(ivp.grid)):
            state, _ = ivp.solver.step(f, state, ivp.grid, i, ())
        away, norm = (x.flatten(1).double().norm(dim=1) for x in (state[0] - ivp.initial, ivp.initial))
        stats.drift = float((away / norm.clamp(min=1e-30)).max())
        if stats.drift <= tolerance:
            return found
        if found.residuals[found.worst] > aim:
            break  # no iteration comes nearer
    assert found is not None
    worst = found.worst
    raise InversionError(
        f"the inversion did not converge to tolerance = {tolerance:g}: step {worst} of {len(ivp.grid)} (t = "
        f"{float(ivp.grid[worst].t):g}) leaves a residual of {found.residuals[worst]:.1e}, and sampling from the noise "
        f"that was found ends {stats.drift:.1e} of its norm away. Take a second-order solver (Heun()), more steps, a "
        "lower guidance scale, a larger tolerance, or Coupled(Euler()) with invert_coupled, which needs no iteration"
    )


class _Inverse(torch.autograd.Function):
    """The state at the noisy end; the graph holds the states of all steps."""

    @staticmethod
    def forward(
        ctx: Any, ivp: IVP, stats: Stats, tolerance: float, leaves: Leaves, clean: Tensor, *tensors: Tensor
    ) -> Tensor:
        found = _checked(ivp, stats, tolerance)
        ctx.ivp, ctx.stats, ctx.leaves = ivp, stats, leaves
        ctx.autocast = autocast_now(clean.device.type)
        ctx.save_for_backward(*found.states, *tensors)
        stats.states = sum(each.nbytes for each in found.states)
        return found.states[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        ivp, leaves, stats = ctx.ivp, ctx.leaves, ctx.stats
        nodes = len(ivp.grid) + 1
        states, tensors = ctx.saved_tensors[:nodes], ctx.saved_tensors[nodes:]
        conds = [each.detach().requires_grad_() for each in tensors[: len(leaves.names)]]
        inner = ivp.wrapped(lambda each: Counted(each, stats, None))
        cond = ivp.cond.replace(**dict(zip(leaves.names, conds, strict=True)))
        f = _derivative(IVP(inner.flow, inner.solver, inner.grid, inner.initial, cond))
        targets = [*conds, *leaves.weights]
        sums = [torch.zeros_like(each) for each in targets]
        g = cotangent
        for i in range(len(ivp.grid)):
            before = stats.nfe_forward
            with ctx.autocast(), torch.enable_grad():
                z = states[i].detach().requires_grad_()
                ((after,), _) = ivp.solver.step(f, (z,), ivp.grid, i, ())
            calls = stats.nfe_forward - before

            def product(v: Tensor, z: Tensor = z, after: Tensor = after, calls: int = calls) -> Tensor:
                stats.nfe_backward += calls
                return torch.autograd.grad(after, z, v, retain_graph=True)[0]

            g = cotangent_of(product, g, "Take more steps, a lower guidance scale, or Heun()")
            if targets:
                shares = torch.autograd.grad(after, targets, g, materialize_grads=True)
                for total, share in zip(sums, shares, strict=True):
                    total -= share
        return None, None, None, None, g, *sums
