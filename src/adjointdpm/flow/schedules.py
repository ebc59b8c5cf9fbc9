"""Noise schedules: x_t = alpha(t) x0 + sigma(t) eps, continuous in t, with an inverse.

Every schedule gives alpha(t), sigma(t) and the inverse of s(t) = sigma / (alpha + sigma), which is
bounded: 0 for data, 1 for pure noise. The solver's variable tau and its state z come from one of two coordinate
systems in which the probability-flow ODE has no stiff linear part:

    NOISE_RATIO   z = y = x / alpha             tau = rho = sigma / alpha             dy/drho = eps
    BOUNDED       z = u = x / (alpha + sigma)   tau = s = sigma / (alpha + sigma)     du/ds = eps - x0

The first is the paper's (AdjointDPM, Pan et al., 2024, arXiv 2307.10711). The second is the same curve without the
division by alpha, so it may start where alpha = 0. In both, x0 = z - tau dz/dtau.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from .._types import InputError, Time

__all__ = ["EDMSchedule", "RectifiedFlow", "Schedule", "VPCosine", "VPDiscrete", "VPLinear"]

Vector = Float64[Tensor, "*n"]


class Schedule(ABC):
    """A noise schedule: alpha(t), sigma(t) and the inverse; times are float64 tensors in the network's own unit.

        x_t = alpha(t) x0 + sigma(t) eps

    Derive from it for a schedule that this module lacks: implement `alpha`, `sigma` and `time`, and set `start`,
    `end`, `limit` and `bounded`.

    Examples:
        >>> import torch
        >>> import adjointdpm as adp
        >>> schedule = adp.VPLinear()
        >>> (time,) = schedule.at(torch.tensor([0.5], dtype=torch.float64))
        >>> round(float(time.alpha), 4), round(float(time.alpha**2 + time.sigma**2), 4)
        (0.2812, 1.0)
    """

    bounded: bool
    """True: integrate in (u, s), which is needed where alpha reaches 0. False: the paper's (y, rho)."""

    start: float
    """The noisy end, where sampling begins by default."""

    end: float
    """The clean end, where sampling stops by default; the denoiser is still meaningful there."""

    limit: float
    """The cleanest time at which alpha and sigma are defined (sigma = 0 there for most schedules)."""

    @abstractmethod
    def alpha(self, t: Vector) -> Vector:
        """The factor of the signal at some times, in the shape of `t`."""

    @abstractmethod
    def sigma(self, t: Vector) -> Vector:
        """The factor of the noise at some times, in the shape of `t`."""

    @abstractmethod
    def time(self, s: Vector) -> Vector:
        """The t at which sigma / (alpha + sigma) = s."""

    def prior_std(self, t: Vector) -> Vector:
        """The standard deviation of x_t at the noisy end, by which standard normal noise is scaled."""
        return (self.alpha(t) ** 2 + self.sigma(t) ** 2).sqrt()

    def at(self, t: Vector) -> list[Time]:
        """The instants of a vector of times, as one `Time` each."""
        alpha, sigma = self.alpha(t), self.sigma(t)
        scale = alpha + sigma if self.bounded else alpha
        return [Time(*each) for each in zip(t, sigma / scale, alpha, sigma, scale, strict=True)]

    def at_tau(self, tau: Vector) -> Time:
        """The instant at which the solver's variable equals `tau`."""
        return self.at(self.time(tau if self.bounded else tau / (1 + tau)).reshape(1))[0]


@dataclass(frozen=True, eq=False)
class VPDiscrete(Schedule):
    """The variance-preserving schedule of a model with discrete training steps, log-linear between them.

        log alpha_bar(t) interpolated linearly in t;  alpha = sqrt(alpha_bar), sigma = sqrt(1 - alpha_bar)

    t is in training steps: 0 is the cleanest, T - 1 the noisiest. alpha_bar = 1 (clean data, the
    `final_sigmas_type="zero"` of diffusers) lies at t = -1. Use it for every diffusers model that was trained with
    betas. No time is rounded to a training step, since rounding would lower the order of the solvers.

    Args:
        alphas_cumprod: (T,), alpha_bar at t = 0 ... T - 1, decreasing, in [0, 1); any dtype.
        bounded: integrate in the bounded coordinates. This is switched on automatically where the last alpha_bar is
            below 1e-6 (zero terminal signal-to-noise ratio), since rho would overflow.

    Raises:
        InputError: `alphas_cumprod` is not a decreasing vector of at least two numbers in [0, 1).

    Examples:
        >>> import torch
        >>> import adjointdpm as adp
        >>> schedule = adp.VPDiscrete(torch.linspace(0.99, 0.01, 1000))
        >>> schedule.start, schedule.end, schedule.limit
        (999.0, 0.0, -1.0)
    """

    alphas_cumprod: Tensor
    bounded: bool = False

    def __post_init__(self) -> None:
        bar = torch.as_tensor(self.alphas_cumprod).to("cpu", torch.float64)
        if bar.ndim != 1 or len(bar) < 2 or not bool(((bar[1:] < bar[:-1]) & (bar[:-1] < 1)).all()):
            raise InputError(
                "alphas_cumprod must be a decreasing vector of at least two numbers in [0, 1), "
                f"but has shape {tuple(bar.shape)} and begins {bar.flatten()[:3].tolist()}"
            )
        # 2^-24 is what diffusers puts in place of a last alpha_bar of exactly zero.
        bar = torch.where(bar > 0, bar, 2.0**-24)
        object.__setattr__(self, "bounded", self.bounded or float(bar[-1]) < 1e-6)
        object.__setattr__(self, "alphas_cumprod", bar)
        object.__setattr__(self, "_log_bar", torch.cat([bar.new_zeros(1), bar.log()]))

    @property
    def start(self) -> float:  # type: ignore[override]
        return float(len(self.alphas_cumprod) - 1)

    end = 0.0
    limit = -1.0

    def log_alpha_bar(self, t: Vector) -> Vector:
        """The logarithm of alpha_bar at any real t in [-1, T - 1]."""
        knots: Tensor = self._log_bar  # type: ignore[attr-defined]
        index = (t.floor().long() + 1).clamp(0, len(knots) - 2)
        return knots[index] + (t + 1 - index) * (knots[index + 1] - knots[index])

    def alpha(self, t: Vector) -> Vector:
        return (0.5 * self.log_alpha_bar(t)).exp()

    def sigma(self, t: Vector) -> Vector:
        return (-torch.expm1(self.log_alpha_bar(t))).sqrt()

    def time(self, s: Vector) -> Vector:
        knots: Tensor = self._log_bar  # type: ignore[attr-defined]
        rho = s / (1 - s)
        log_bar = -torch.log1p(rho * rho)
        index = (torch.searchsorted(-knots, -log_bar) - 1).clamp(0, len(knots) - 2)
        return index - 1 + (log_bar - knots[index]) / (knots[index + 1] - knots[index])


@dataclass(frozen=True)
class VPLinear(Schedule):
    """The continuous variance-preserving schedule with a linear beta.

        log alpha(t) = -t^2 (beta_max - beta_min) / 4 - t beta_min / 2,   t in [0, 1]

    Use it for models of continuous time (score SDEs). For diffusers models use `VPDiscrete`.

    Args:
        beta_min: the rate at t = 0, per unit of time.
        beta_max: the rate at t = 1, per unit of time.
        bounded: integrate in the bounded coordinates.

    References:
        Song et al., 2021, arXiv 2011.13456.

    Examples:
        >>> import adjointdpm as adp
        >>> schedule = adp.VPLinear()
        >>> schedule.start, schedule.end
        (1.0, 0.001)
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    bounded: bool = False

    start = 1.0
    end = 1e-3
    limit = 0.0

    def _log_alpha(self, t: Vector) -> Vector:
        return -(t**2) * (self.beta_max - self.beta_min) / 4 - t * self.beta_min / 2

    def alpha(self, t: Vector) -> Vector:
        return self._log_alpha(t).exp()

    def sigma(self, t: Vector) -> Vector:
        return (-torch.expm1(2 * self._log_alpha(t))).sqrt()

    def time(self, s: Vector) -> Vector:
        rho = s / (1 - s)
        c = torch.log1p(rho * rho) / 2  # = -log alpha; the root below does not cancel at small t
        slope = self.beta_max - self.beta_min
        return 2 * c / (self.beta_min / 2 + (self.beta_min**2 / 4 + slope * c).sqrt())


@dataclass(frozen=True)
class VPCosine(Schedule):
    """The cosine schedule in continuous time.

        alpha(t) = cos(pi/2 (t + s) / (1 + s)) / cos(pi/2 s / (1 + s)),   t in [0, 1]

    Sampling starts at t = 0.9946, as in DPM-Solver (Lu et al., 2022, arXiv 2206.00927), since alpha is 0 at t = 1.

    Args:
        offset: the s above, a small number that keeps the first noise level above zero.
        bounded: integrate in the bounded coordinates.

    References:
        Nichol and Dhariwal, 2021, arXiv 2102.09672.

    Examples:
        >>> import adjointdpm as adp
        >>> adp.VPCosine().start
        0.9946
    """

    offset: float = 0.008
    bounded: bool = False

    start = 0.9946
    end = 1e-3
    limit = 0.0

    def alpha(self, t: Vector) -> Vector:
        first = math.cos(math.pi / 2 * self.offset / (1 + self.offset))
        return torch.cos(math.pi / 2 * (t + self.offset) / (1 + self.offset)) / first

    def sigma(self, t: Vector) -> Vector:
        return (1 - self.alpha(t) ** 2).clamp(min=0).sqrt()

    def time(self, s: Vector) -> Vector:
        first = math.cos(math.pi / 2 * self.offset / (1 + self.offset))
        rho = s / (1 - s)
        alpha = (1 + rho * rho).rsqrt()
        return torch.acos(alpha * first) * 2 / math.pi * (1 + self.offset) - self.offset


@dataclass(frozen=True)
class EDMSchedule(Schedule):
    """The variance-exploding schedule whose time is the noise level itself.

        alpha = 1,   sigma = t,   t in [sigma_min, sigma_max]

    Args:
        sigma_min: the noise level at the clean end, in units of the data.
        sigma_max: the noise level at the noisy end.
        bounded: integrate in the bounded coordinates.

    References:
        Karras et al., 2022, arXiv 2206.00364.

    Examples:
        >>> import adjointdpm as adp
        >>> adp.EDMSchedule().start
        80.0
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    bounded: bool = False

    limit = 0.0

    @property
    def start(self) -> float:  # type: ignore[override]
        return self.sigma_max

    @property
    def end(self) -> float:  # type: ignore[override]
        return self.sigma_min

    def alpha(self, t: Vector) -> Vector:
        return torch.ones_like(t)

    def sigma(self, t: Vector) -> Vector:
        return t

    def time(self, s: Vector) -> Vector:
        return s / (1 - s)

    def prior_std(self, t: Vector) -> Vector:
        return self.sigma(t)


@dataclass(frozen=True)
class RectifiedFlow(Schedule):
    """The straight path between noise and data.

        alpha = 1 - t / unit,   sigma = t / unit,   t in [0, unit]

    It starts at pure noise, where rho is infinite, so it always runs in the bounded coordinates. There u = x, and the
    velocity is the network's own output.

    Args:
        bounded: True; no other value is possible.
        unit: the time of pure noise; 1000 for the pipelines of diffusers, which count training steps.

    Raises:
        InputError: `bounded` is False.

    References:
        Liu et al., 2023, arXiv 2209.03003.

    Examples:
        >>> import adjointdpm as adp
        >>> adp.RectifiedFlow(unit=1000.0).start
        1000.0
    """

    bounded: bool = True
    unit: float = 1.0

    end = 0.0
    limit = 0.0

    def __post_init__(self) -> None:
        if not self.bounded:
            raise InputError("rectified flow starts at rho = infinity; use bounded=True")

    @property
    def start(self) -> float:  # type: ignore[override]
        return self.unit

    def alpha(self, t: Vector) -> Vector:
        return 1 - t / self.unit

    def sigma(self, t: Vector) -> Vector:
        return t / self.unit

    def time(self, s: Vector) -> Vector:
        return s * self.unit

    def prior_std(self, t: Vector) -> Vector:
        return self.sigma(t)
