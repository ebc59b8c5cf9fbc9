"""The stored states of a sampling, so that a continuous adjoint need not solve for them again."""

import torch
from torch import Tensor

from .._types import Time

__all__ = ["Evaluations", "Interpolation"]


class Interpolation:
    """The states z at the nodes of the forward grid, and between them by interpolation.

    Between two nodes it is the cubic Hermite polynomial through both states and slopes, with an error of O(h^4). In the
    last interval, whose second slope is never evaluated, it is a quadratic, with an error of O(h^3) once.
    """

    def __init__(self) -> None:
        self._taus: list[Tensor] = []
        self._states: list[Tensor] = []
        self._slopes: list[Tensor] = []

    def add_state(self, z: Tensor, time: Time) -> None:
        """Store the state at the next node."""
        self._taus.append(time.tau)
        self._states.append(z)

    def add_slope(self, slope: Tensor, z: Tensor) -> None:
        """Store dz/dtau at the newest node; later slopes before the next node are those of stages, and are ignored."""
        if len(self._slopes) < len(self._states):
            self._slopes.append(slope)

    @property
    def nbytes(self) -> int:
        """The bytes that are held."""
        return sum(tensor.nbytes for tensor in (*self._states, *self._slopes))

    def node(self, time: Time) -> int | None:
        """The number of the node at an instant; None if there is none."""
        taus = torch.stack(self._taus)
        near = int((taus - time.tau).abs().argmin())
        # The inverse of tau is exact to rounding only, so an instant this close to a node is that node.
        return near if abs(float(taus[near] - time.tau)) <= 1e-10 * abs(float(taus[0])) else None

    def slope(self, time: Time) -> Tensor:
        """The stored dz/dtau at a node.

        Args:
            time: the instant of the node.

        Returns:
            dz/dtau, (batch, *shape).

        Raises:
            LookupError: there is no node at this instant.
        """
        i = self.node(time)
        if i is None:
            raise LookupError(f"no slope was evaluated at t = {float(time.t):g}")
        return self._slopes[i]

    def __call__(self, time: Time) -> Tensor:
        """The state at an instant of the span.

        Args:
            time: the instant.

        Returns:
            z, (batch, *shape).
        """
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
    """The states z at every evaluation of the velocity, in order, for a backward pass with the same evaluations.

    A Runge-Kutta stage is not a point of the trajectory, so interpolation would differ from it by O(h^2).
    """

    def __init__(self) -> None:
        super().__init__()
        self._next = 0

    def add_state(self, z: Tensor, time: Time) -> None:
        """Do nothing, since every node is also an evaluation."""

    def add_slope(self, slope: Tensor, z: Tensor) -> None:
        """Store the state of the next evaluation."""
        self._states.append(z)

    def __call__(self, time: Time) -> Tensor:
        """The state of the next evaluation; after the last one, the first again."""
        state = self._states[self._next % len(self._states)]
        self._next += 1
        return state
