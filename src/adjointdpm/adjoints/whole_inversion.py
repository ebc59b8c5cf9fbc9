"""The inverse of a whole sampling at once, where an image does not determine its steps one by one.

    x - F(G(y)) = 0,    z = G(y)        F: the sampling, from noise to latents;  G: an approximate inverse of it

F need not be known as equations, so a multistep solver and the scheduler of a pipeline are alike. G solves the flow
backwards, so that F(G(y)) is near y. Then the iteration y <- y + x - F(G(y)), defect correction (Stetter, 1978), needs
only a few samplings; it is accelerated, and Newton's method follows it, as `solvers.fixed_point` does it.

By the implicit function theorem z = z* + (dF/dz)^-1 (x - F(z*; c)) has the gradient of the inverse at the solution z*.
With g the cotangent of z, the cotangent u of x - F follows from

    (dF/dz)^T u = g      or, which GMRES solves in fewer products,      (d F(G(y)) / dy)^T u = (dG/dy)^T g
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..solvers.fixed_point import solve
from .inversion import cotangent_of
from .recompute import autocast_now

__all__ = ["WholeInverse"]

_ITERATIONS = 30
_NEWTON = 2  # each of them costs about as much as all iterations of the fixed point
_MEMORY = 15


class WholeInverse:
    """A sampling and an approximate inverse of it, with which the sampling is inverted as a whole.

    Args:
        sampling: F, from noise to latents, (batch, *shape) each; no sample depends on another. It is differentiable,
            and what it depends on besides the noise receives gradients through it.
        backwards: G, from latents to noise, likewise.
    """

    def __init__(self, sampling: Callable[[Tensor], Tensor], backwards: Callable[[Tensor], Tensor]) -> None:
        self._sampling, self._backwards = sampling, backwards

    def found(self, latents: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
        """Solve x - F(G(y)) = 0 as well as the iterations do, without a graph.

        Args:
            latents: x, (batch, *shape).
            tolerance: the distance |x - F| / |x| at which the iteration stops.

        Returns:
            y, and the distances of the batch, whether or not they reach the tolerance.
        """
        x = latents.detach()
        with torch.no_grad():
            root = solve(
                lambda y: x - self._sampling(self._backwards(y)),
                x,
                x,
                tolerance,
                iterations=_ITERATIONS,
                newton=_NEWTON,
                memory=_MEMORY,
            )
        return root.z, root.residual

    def noise(self, y: Tensor, latents: Tensor) -> Tensor:
        """The noise of a solution y, with the gradient of the inverse.

        Args:
            y: from `found`.
            latents: x, (batch, *shape), with its graph.

        Returns:
            z = G(y), (batch, *shape).
        """
        with torch.no_grad():
            z = self._backwards(y)
        if not torch.is_grad_enabled():
            return z
        left = latents - self._sampling(z)
        return _Implicit.apply(left, y, z, self) if left.requires_grad else z

    def product(self, y: Tensor, g: Tensor) -> Tensor:
        """Solve (dF/dz)^T u = g at z = G(y).

        Args:
            y: (batch, *shape).
            g: the cotangent of z, (batch, *shape).

        Returns:
            u, (batch, *shape).
        """
        y = y.detach().requires_grad_()
        z = self._backwards(y)
        x = self._sampling(z)
        right = torch.autograd.grad(z, y, g, retain_graph=True)[0]

        def transposed(v: Tensor) -> Tensor:
            return torch.autograd.grad(x, y, v, retain_graph=True)[0]

        return cotangent_of(
            transposed, right, "Take more steps, a lower guidance scale, or a one-step solver"
        )


class _Implicit(torch.autograd.Function):
    """z* as a function of x - F(z*; c), which is zero up to the tolerance."""

    @staticmethod
    def forward(ctx: Any, left: Tensor, y: Tensor, z: Tensor, inverse: WholeInverse) -> Tensor:
        ctx.inverse, ctx.autocast = inverse, autocast_now(z.device.type)
        ctx.save_for_backward(y)
        return z

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        (y,) = ctx.saved_tensors
        with ctx.autocast(), torch.enable_grad():
            u = ctx.inverse.product(y, cotangent)
        return u.detach(), None, None, None
