"""The states of a sampling, remembered so that a continuous adjoint need not solve for them again."""

import torch
from torch import Tensor

from .._types import Time

__all__ = ["Evaluations", "Interpolation"]


class Interpolation:
    """z at the nodes of the forward grid, and between them by interpolation.

    Between two nodes: the cubic Hermite polynomial through both states and slopes (error O(h^4)); in
    the last interval, whose far slope is never evaluated, the quadratic (O(h^3), once).
    """

    def __init__(self) -> None:
        self._taus: list[Tensor] = []
        self._states: list[Tensor] = []
        self._slopes: list[Tensor] = []

    def add_state(self, time: Time, z: Tensor) -> None:
        """Remember the state at the next node."""
        self._taus.append(time.tau)
        self._states.append(z)

    def add_slope(self, time: Time, z: Tensor, slope: Tensor) -> None:
        """Remember dz/dtau at the newest node; only the first one given there is its own."""
        if len(self._slopes) < len(self._states):
            self._slopes.append(slope)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(tensor.nbytes for tensor in (*self._states, *self._slopes))

    def node(self, time: Time) -> int | None:
        """The node at an instant, if there is one."""
        taus = torch.stack(self._taus)
        near = int((taus - time.tau).abs().argmin())
        # The inverse of tau is only right to rounding; a node is meant when it is that close.
        return near if abs(float(taus[near] - time.tau)) <= 1e-10 * abs(float(taus[0])) else None

    def slope(self, time: Time) -> Tensor:
        """dz/dtau at a node."""
        i = self.node(time)
        if i is None:
            raise LookupError(f"no slope was evaluated at t = {float(time.t):g}")
        return self._slopes[i]

    def __call__(self, time: Time) -> Tensor:
        """z at an instant of the span."""
        near = self.node(time)
        if near is not None:
            return self._states[near]
        taus = torch.stack(self._taus)
        i = min(max(int((taus > time.tau).sum()) - 1, 0), len(taus) - 2)
        h = taus[i + 1] - taus[i]
        u = (time.tau - taus[i]) / h
        z0, z1, m0 = self._states[i], self._states[i + 1], self._slopes[i]
        if i + 1 == len(self._slopes):
            return (1 - u**2) * z0 + u**2 * z1 + h * (u - u**2) * m0
        m1 = self._slopes[i + 1]
        blend = (3 - 2 * u) * u**2
        return (1 - blend) * z0 + blend * z1 + h * (u * (1 - u) ** 2) * m0 + h * (u**2 * (u - 1)) * m1


class Evaluations(Interpolation):
    """z at every evaluation of the velocity, in their order: for a backward pass that makes the same ones.

    A Runge-Kutta stage is not a point of the trajectory; interpolation would miss it by O(h^2).
    """

    def __init__(self) -> None:
        super().__init__()
        self._next = 0

    def add_state(self, time: Time, z: Tensor) -> None:
        """Nodes are evaluations already."""

    def add_slope(self, time: Time, z: Tensor, slope: Tensor) -> None:
        """Remember the state of the next evaluation."""
        self._states.append(z)

    def __call__(self, time: Time) -> Tensor:
        """The state of the next evaluation; after the last, the first again."""
        state = self._states[self._next % len(self._states)]
        self._next += 1
        return state
