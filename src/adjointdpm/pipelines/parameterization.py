"""A model's schedule, and the inputs and outputs of its network, read from a scheduler of diffusers.

    alphas_cumprod                  VPDiscrete; the network takes the training step
    FlowMatch..., use_flow_sigmas   RectifiedFlow in the pipeline's unit, sigma = t / num_train_timesteps
    EDM...                          EDMSchedule; the network takes c_in x and c_noise(sigma), and its output F means
                                    x0 = c_skip x + c_out F (Karras et al., 2022, arXiv 2206.00364, table 1)

Only the noise levels of the model itself are read here. The choice of those that a scheduler visits (leading or
trailing spacing, Karras sigmas, the resolution-dependent shift of flow models) is a grid and not a schedule.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .._types import InputError, Scalar
from ..flow.denoisers import Prediction
from ..flow.schedules import EDMSchedule, RectifiedFlow, Schedule, VPDiscrete

__all__ = ["Parameterization", "parameterization_of"]


@dataclass(frozen=True)
class Parameterization:
    """A schedule, the network's prediction, and the preconditioning of its inputs and outputs.

    Args:
        schedule: alpha and sigma at each time.
        prediction: the quantity that the output is after `postcondition`.
        sigma_data: EDM's standard deviation of the data; None where the network takes x itself.
        sign: the sign of EDM's c_out; -1 for v prediction.

    References:
        Karras et al., 2022, arXiv 2206.00364, table 1.
    """

    schedule: Schedule
    prediction: Prediction
    sigma_data: float | None = None
    sign: float = 1.0

    def time_input(self, t: Scalar) -> Scalar:
        """The time in the unit that the pipeline passes to its network, c_noise.

        Args:
            t: the schedule's time.

        Returns:
            the network's time.
        """
        return t if self.sigma_data is None else t.log() / 4

    def schedule_time(self, t: Tensor) -> Tensor:
        """The schedule's times of times in the pipeline's unit: the inverse of `time_input`.

        Args:
            t: the network's times.

        Returns:
            the schedule's times.
        """
        return t if self.sigma_data is None else (4 * t).exp()

    def precondition(self, x: Tensor, t: Scalar) -> Tensor:
        """The network's input, c_in x.

        Args:
            x: the sample, (batch, *shape).
            t: the schedule's time.

        Returns:
            the input, (batch, *shape).
        """
        return x if self.sigma_data is None else x / (t**2 + self.sigma_data**2).sqrt()

    def postcondition(self, out: Tensor, x: Tensor, t: Scalar) -> Tensor:
        """The network's output in the form of `prediction`, c_skip x + c_out F.

        Args:
            out: the network's output F, (batch, *shape).
            x: the sample, (batch, *shape).
            t: the schedule's time.

        Returns:
            the prediction, (batch, *shape).
        """
        if self.sigma_data is None:
            return out
        total = t**2 + self.sigma_data**2
        return self.sigma_data**2 / total * x + self.sign * t * self.sigma_data / total.sqrt() * out


def parameterization_of(scheduler: Any) -> Parameterization:
    """Read the parameterization of a model from its scheduler.

    Args:
        scheduler: a scheduler of diffusers.

    Returns:
        the parameterization.

    Raises:
        InputError: it is none of the three kinds above, runs from data to noise, or its prediction is unknown.
    """
    name, config = type(scheduler).__name__, scheduler.config
    if config.get("invert_sigmas"):
        raise InputError(
            f"{name} with invert_sigmas=True counts from data to noise, which is not supported"
        )
    if name.startswith("FlowMatch") or config.get("use_flow_sigmas"):
        prediction = _prediction(config.get("prediction_type", "flow_prediction"))
        return Parameterization(RectifiedFlow(unit=float(config.num_train_timesteps)), prediction)
    if hasattr(scheduler, "precondition_outputs") and hasattr(scheduler, "precondition_noise"):
        sign = {"epsilon": 1.0, "v_prediction": -1.0}[config.prediction_type]
        schedule = EDMSchedule(float(config.sigma_min), float(config.sigma_max))
        return Parameterization(schedule, Prediction.X0, float(config.sigma_data), sign)
    alphas = getattr(scheduler, "alphas_cumprod", None)
    if alphas is None or config.get("timestep_type") == "continuous":
        raise InputError(
            f"the noise schedule of {name} is unknown: it is neither variance preserving "
            "(alphas_cumprod) nor a rectified flow (FlowMatch..., use_flow_sigmas) nor EDM's"
        )
    return Parameterization(VPDiscrete(alphas), _prediction(config.get("prediction_type", "epsilon")))


def _prediction(kind: str) -> Prediction:
    try:
        return Prediction(kind)
    except ValueError:
        known = ", ".join(each.value for each in Prediction)
        raise InputError(f"prediction_type must be one of {known}, but the scheduler has {kind}") from None
