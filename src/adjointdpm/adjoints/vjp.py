"""Vector-Jacobian products of the velocity, one denoiser call at a time, outside of autograd's graph.

    products(z, time, mu) = f,  mu^T df/dz,  mu^T df/dc,  mu^T df/dtheta

`Continuous` and `Reversible` share this code: one graph is made, used and freed at each instant.
"""

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from .._types import Derivative, InputError, RecomputationError, State, Stats, Time
from ..solvers.integrate import IVP
from .cotangents import CotangentNorms
from .evaluation import Counted
from .recompute import Graph, autocast_now
from .repetition import Checksum, rounding
from .saved_bytes import SavedBytes, Taken, addresses

__all__ = ["VJP", "Leaves"]

_NEAR = 1e-3  # the relative distance of states up to which their velocities are compared
_SLACK = 100.0  # the largest accepted ratio of the velocities' distance to that of the states


class Leaves:
    """The tensors that require a gradient and that a custom Function takes as inputs: conditioning, then weights.

    Args:
        ivp: the problem.
        adjoint: the name of the adjoint, for messages.

    Raises:
        InputError: the time grid requires a gradient, or weights are sharded.
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


class VJP:
    """The IVP's velocity and its vector-Jacobian products with z, conditioning and weights.

    Args:
        ivp: the problem.
        stats: the record of the sampling.
        leaves: the tensors that are differentiated besides z.
        rescale: scale each cotangent by a power of two to a norm near 1 before it enters the network, and scale the
            products back. This is exact, except that it prevents under- and overflow in float16.
    """

    def __init__(self, ivp: IVP, stats: Stats, leaves: Leaves, rescale: bool = False) -> None:
        self._ivp = ivp.wrapped(lambda each: Counted(each, stats, ivp.influence))
        self._stats, self._rescale = stats, rescale
        self._names, self._weights = leaves.names, leaves.weights
        self._shared = [*ivp.cond.values(), *ivp.flow.denoiser.parameters()]
        self.trace = CotangentNorms(stats, ivp.grid)
        self._autocast = autocast_now(ivp.initial.device.type)
        self._rounding = rounding([ivp.initial, *self._shared])
        self._made: dict[
            float, list[tuple[Checksum, Checksum]]
        ] = {}  # those of state and velocity, at each time
        self._size = 0  # size of the first evaluation's graph
        # FSDP puts operations of its own into graphs, and these differ between the passes.
        self._gathered = any(hasattr(module, "unshard") for module in ivp.flow.denoiser.modules())
        # Whether a velocity of the backward pass has been compared with one of the forward pass.
        self.compared = False

    def made(self, z: Tensor, time: Time, slope: Tensor) -> None:
        """Store the checksums of an evaluation of the forward pass.

        Args:
            z: its state.
            time: its instant.
            slope: its velocity.
        """
        self._made.setdefault(float(time.t), []).append((Checksum(z), Checksum(slope)))

    def _compare(self, z: Tensor, time: Time, slope: Tensor) -> None:
        """Raise if the forward pass found another velocity at this state.

        States that are rebuilt, or solved for again, are near those of the forward pass but not equal. So velocities
        may differ by a multiple of the states' distance, and by the rounding of the network's dtype. Where no state of
        the forward pass is near, nothing is compared.

        Raises:
            RecomputationError: it differs by more than that.
        """
        state, velocity = Checksum(z), Checksum(slope)
        near = ((then.distance(state), found) for then, found in self._made.get(float(time.t), []))
        away, found = min(near, key=lambda each: each[0], default=(math.inf, velocity))
        if away > _NEAR:
            return
        self.compared = True
        apart = found.distance(velocity)
        first = away <= self._rounding and time.t == self._ivp.grid[0].t and not self._gathered
        # Measuring a graph takes time, and the size of only one graph of the forward pass is known.
        if slope.requires_grad and first and (size := Graph(slope, [z]).size) != self._size:
            raise RecomputationError(
                f"the velocity at t = {float(time.t):g} has a graph of {size} nodes when it is evaluated again in "
                f"the backward pass, and had {self._size}: the denoiser returns something that it has cached; use "
                "Backprop()"
            )
        if not apart <= _SLACK * away + self._rounding:
            raise RecomputationError(
                f"the velocity at t = {float(time.t):g} differs by {apart:.1e} of its norm when it is evaluated "
                "again in the backward pass: the denoiser is not the same function when it is called again (dropout, "
                "a random generator, a counter or a cache of its own, or weights that were changed meanwhile); call "
                "eval(), use Checkpointed(), which repeats torch's random numbers, or Backprop()"
            )

    def probe(self, initial: Tensor) -> None:
        """If no velocity has been compared, evaluate the first one again and compare it.

        Args:
            initial: the state at the first node.
        """
        if not self.compared:
            with self._autocast(), torch.no_grad():
                time = self._ivp.grid[0]
                self._compare(initial, time, self.velocity(initial, time))

    def velocity(self, z: Tensor, time: Time) -> Tensor:
        """The IVP's velocity; each evaluation is counted.

        Args:
            z: the state, (batch, *shape).
            time: the instant.

        Returns:
            dz/dtau, (batch, *shape).
        """
        return self._ivp.velocity(z, time)

    def _opened(self, z: Tensor, conds: list[Tensor]) -> tuple[Derivative, list[Tensor]]:
        """The velocity as a function of new leaves, and the leaves: the state first, then the conditioning."""
        inputs = [tensor.detach().requires_grad_() for tensor in (z, *conds)]
        cond = self._ivp.cond.replace(**dict(zip(self._names, inputs[1:], strict=True)))
        ivp = replace(self._ivp, cond=cond)

        def f(state: State, time: Time) -> State:
            slope = ivp.velocity(state[0], time)
            self._compare(state[0], time, slope)
            return (slope,)

        return f, inputs

    def check(self, z: Tensor, time: Time) -> Tensor:
        """The velocity, after a check that it depends on no differentiable tensor besides the leaves.

        Args:
            z: the state, (batch, *shape).
            time: the instant.

        Returns:
            dz/dtau, (batch, *shape).

        Raises:
            InputError: it depends on a captured tensor, or something keeps a tensor of its graph.
        """
        taken = Taken()
        value = self._checked(z, time, taken)
        taken.refuse()
        return value

    def _checked(self, z: Tensor, time: Time, taken: Taken) -> Tensor:
        f, inputs = self._opened(z, [self._ivp.cond[name] for name in self._names])
        with torch.enable_grad(), taken, SavedBytes(addresses(self._shared)) as saved:
            (slope,) = f((inputs[0],), time)
        self._stats.measured &= saved.bytes is not None
        self._stats.recomputed = saved.bytes or 0
        graph = Graph(slope, inputs)
        self._size = graph.size
        if unknown := graph.others(self._weights):
            shapes = ", ".join(str(tuple(leaf.shape)) for leaf in unknown[:3])
            raise InputError(
                f"the denoiser depends on {len(unknown)} differentiable tensors (shape {shapes}) "
                "that are neither in the conditioning nor among its parameters, so their gradient would "
                "be lost: register them as nn.Parameter or pass them in the Cond, or use Checkpointed()"
            )
        return slope.detach()

    def __call__(self, z: Tensor, time: Time, mu: Tensor, leaves: list[Tensor]) -> State:
        """The velocity and its products at one instant: f, mu^T df/dz, mu^T df/dc, mu^T df/dtheta.

        Args:
            z: the state, (batch, *shape).
            time: the instant.
            mu: the cotangent of f, (batch, *shape).
            leaves: the conditioning's tensors and the weights, in the order of `Leaves`.

        Returns:
            f, its product with z, and one with each leaf.
        """
        return self.through(lambda f, z: f((z,), time)[0], z, time, mu, leaves)

    def through(
        self,
        g: Callable[[Derivative, Tensor], Tensor],
        z: Tensor,
        time: Time,
        mu: Tensor,
        leaves: list[Tensor],
    ) -> State:
        """The value and the products of any map g(f, z), such as a solver's increment.

            g,  mu^T dg/dz,  mu^T dg/dc,  mu^T dg/dtheta

        Args:
            g: the map, of the velocity f and the state z.
            z: the state, (batch, *shape).
            time: the instant, for messages.
            mu: the cotangent of g, (batch, *shape).
            leaves: the conditioning's tensors and the weights, in the order of `Leaves`.

        Returns:
            g, its product with z, and one with each leaf.
        """
        before = self._stats.nfe_forward
        # A backward pass runs outside the user's autocast, which must be entered again.
        with self._autocast():
            f, inputs = self._opened(z, leaves[: len(self._names)])
            with torch.enable_grad():
                out = g(f, inputs[0])
            self._stats.nfe_backward += self._stats.nfe_forward - before
            targets = [*inputs, *leaves[len(self._names) :]]
            power = _power(mu) if self._rescale else 1.0
            products = torch.autograd.grad(out, targets, mu / power, materialize_grads=True)
        products = [power * product for product in products] if self._rescale else products
        self.trace.check(products[0], time, "through the denoiser")
        return out.detach(), *products


def _power(mu: Tensor) -> float:
    """The power of two nearest to the root mean square of a cotangent; 1 if that is 0 or infinite."""
    size = float(mu.double().square().mean().sqrt())
    return 2.0 ** round(torch.tensor(size).log2().item()) if 0 < size < float("inf") else 1.0
