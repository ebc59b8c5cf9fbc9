"""Vector-Jacobian products of the velocity, one denoiser call at a time, outside of autograd's graph.

    products(time, z, mu) = f,  mu^T df/dz,  mu^T df/dc,  mu^T df/dtheta

What `Continuous` and `Reversible` share: one graph is made, used and freed at each instant.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .._types import Derivative, InputError, State, Stats, Time
from ..ivp import IVP
from .meter import SavedBytes
from .recompute import autocast_now, strangers
from .trace import Trace

__all__ = ["Leaves", "Products"]


class Leaves:
    """The tensors that a custom Function must take as inputs: conditioning first, then weights.

    Raises:
        InputError: the time grid wants a gradient, or weights are sharded.
    """

    def __init__(self, ivp: IVP, adjoint: str) -> None:
        self.weights: list[Tensor] = [p for p in ivp.flow.denoiser.parameters() if p.requires_grad]
        if ivp.grid.times.requires_grad:
            raise InputError(f"{adjoint} has no gradient for the time grid; use Checkpointed()")
        if any(hasattr(weight, "full_tensor") for weight in self.weights):
            raise InputError(
                f"{adjoint} cannot return gradients to sharded (DTensor) weights; use Checkpointed(), "
                "or freeze the weights"
            )
        self.names = [name for name, tensor in ivp.cond.items() if tensor.requires_grad]
        self.tensors = [*(ivp.cond[name] for name in self.names), *self.weights]


class Products:
    """The IVP's velocity and its vector-Jacobian products with z, conditioning and weights.

    Args:
        ivp: the problem.
        stats: the accounts.
        leaves: what is differentiated besides z.
        rescale: bring each cotangent to a norm near 1 by a power of two before it enters the network,
            and the products back: exact but for under- and overflow, which it prevents in float16.
    """

    def __init__(self, ivp: IVP, stats: Stats, leaves: Leaves, rescale: bool = False) -> None:
        self._ivp, self._stats, self._rescale = ivp, stats, rescale
        self._names, self._weights = leaves.names, leaves.weights
        self._shared = [*ivp.cond.values(), *ivp.flow.denoiser.parameters()]
        self.trace = Trace(stats, ivp.grid)
        self._autocast = autocast_now(ivp.initial.device.type)

    def run(self, fn: Any, *tensors: Tensor) -> Tensor:
        """One counted call of the denoiser."""
        self._stats.nfe_forward += 1
        return fn(*tensors)

    def _opened(self, z: Tensor, conds: list[Tensor]) -> tuple[Derivative, list[Tensor]]:
        """The velocity with fresh leaves, and those: the state first, then the conditioning."""
        inputs = [tensor.detach().requires_grad_() for tensor in (z, *conds)]
        cond = self._ivp.cond.replace(**dict(zip(self._names, inputs[1:], strict=True)))
        ivp = replace(self._ivp, cond=cond)
        return lambda time, state: (ivp.velocity(time, state[0], self.run),), inputs

    def check(self, time: Time, z: Tensor) -> Tensor:
        """The velocity, once it is sure that every tensor it depends on is one we differentiate."""
        f, inputs = self._opened(z, [self._ivp.cond[name] for name in self._names])
        with torch.enable_grad(), SavedBytes(self._shared) as saved:
            (slope,) = f(time, (inputs[0],))
        self._stats.measured &= saved.bytes is not None
        self._stats.recomputed = saved.bytes or 0
        if unknown := strangers(slope, [*inputs, *self._weights]):
            shapes = ", ".join(str(tuple(leaf.shape)) for leaf in unknown[:3])
            raise InputError(
                f"the denoiser depends on {len(unknown)} differentiable tensors (shape {shapes}) "
                "that are neither in the conditioning nor among its parameters, so their gradient would "
                "be lost: register them as nn.Parameter or pass them in the Cond, or use Checkpointed()"
            )
        return slope.detach()

    def __call__(self, time: Time, z: Tensor, mu: Tensor, leaves: list[Tensor]) -> State:
        """(f, mu^T df/dz, mu^T df/dc, mu^T df/dtheta) at one instant."""
        return self.through(lambda f, z: f(time, (z,))[0], time, z, mu, leaves)

    def through(
        self,
        g: Callable[[Derivative, Tensor], Tensor],
        time: Time,
        z: Tensor,
        mu: Tensor,
        leaves: list[Tensor],
    ) -> State:
        """(g, mu^T dg/dz, mu^T dg/dc, mu^T dg/dtheta) of any map g(f, z), such as a solver's increment."""
        before = self._stats.nfe_forward
        # A backward pass runs outside of the user's autocast, which must be entered again.
        with self._autocast():
            f, inputs = self._opened(z, leaves[: len(self._names)])
            with torch.enable_grad():
                out = g(f, inputs[0])
            self._stats.nfe_backward += self._stats.nfe_forward - before
            targets = [*inputs, *leaves[len(self._names) :]]
            power = _power(mu) if self._rescale else 1.0
            products = torch.autograd.grad(out, targets, mu / power, materialize_grads=True)
        products = [power * product for product in products] if self._rescale else products
        self.trace.check(time, products[0], "through the denoiser")
        return out.detach(), *products


def _power(mu: Tensor) -> float:
    """The power of two nearest to the root mean square of a cotangent; 1 for none."""
    size = float(mu.double().square().mean().sqrt())
    return 2.0 ** round(torch.tensor(size).log2().item()) if 0 < size < float("inf") else 1.0
