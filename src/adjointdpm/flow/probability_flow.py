"""The probability-flow ODE in coordinates without a stiff linear part.

    dz/dtau = eps(x, t, cond)         z = x / alpha,            tau = sigma / alpha
    dz/dtau = eps - x0                z = x / (alpha + sigma),  tau = sigma / (alpha + sigma)

The first line is the equation dy/drho = eps of AdjointDPM (Pan et al., 2024, arXiv 2307.10711). The schedule's
`bounded` decides which of the two is used. In both, x0 = z - tau dz/dtau.
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from .._types import Cond, Time
from .denoisers import Denoiser, check_output
from .schedules import Schedule

__all__ = ["ProbabilityFlow"]

Batch = Float[Tensor, "batch *shape"]


@dataclass(frozen=True)
class ProbabilityFlow:
    """The probability-flow ODE of a schedule and a denoiser.

        dz/dtau = eps, or eps - x0 in bounded coordinates

    Args:
        schedule: gives alpha, sigma and the coordinates.
        denoiser: the network, guidance included.

    References:
        Pan et al., 2024, arXiv 2307.10711.
    """

    schedule: Schedule
    denoiser: Denoiser

    def initial(self, noise: Batch, time: Time) -> Batch:
        """The state at the noisy end: standard normal noise times the prior's standard deviation.

        Args:
            noise: standard normal, (batch, *shape).
            time: the first instant.

        Returns:
            z, (batch, *shape).
        """
        return noise * (self.schedule.prior_std(time.t) / time.scale)

    def velocity(self, z: Batch, time: Time, cond: Cond) -> Batch:
        """The velocity dz/dtau at a state; one evaluation of the denoiser.

        Args:
            z: the state, (batch, *shape).
            time: the instant.
            cond: the conditioning.

        Returns:
            dz/dtau, (batch, *shape).

        Raises:
            InputError: the denoiser returns anything but one tensor of its input's shape.
        """
        x = z * time.scale
        out = self.denoiser(x, time.t, cond)
        check_output(self.denoiser, out, x)
        prediction = self.denoiser.prediction
        if self.schedule.bounded:
            return prediction.drift(out, x, time)
        return prediction.eps(out, x, time)

    def sample(self, z: Batch, time: Time) -> Batch:
        """The sample x (image or latent) of a state z.

        Args:
            z: the state, (batch, *shape).
            time: its instant.

        Returns:
            x, (batch, *shape).
        """
        return z * time.scale
