"""Solvers of the reverse-time SDE, with noise that can be repeated.

In the paper's coordinates, with eta from 0 (the ODE) to 1 (the full SDE of Song et al., 2021, arXiv 2011.13456), W a
Wiener process and rho falling:

    dy = (1 + eta^2) eps drho + eta sqrt(2 rho) dW

The noise is additive, so the gradient of a path is that of its deterministic part alone. `StepNoise` gives the
increments of W for each step.
"""

from dataclasses import dataclass

from .._types import Derivative, InputError, Scalar, State, Time
from ..flow.grids import TimeGrid
from .base import History, Solver, combine, ends_clean
from .multistep import extrapolated
from .step_noise import StepNoise

__all__ = ["Ancestral", "EulerMaruyama", "SDEDPMSolverPP"]


@dataclass(frozen=True)
class EulerMaruyama(Solver):
    """The Euler-Maruyama method, the simplest SDE solver, one call a step.

        y' = y + (1 + eta^2) (rho' - rho) eps + eta sqrt(rho^2 - rho'^2) xi

    Use it for reference solutions at many steps. At few steps `Ancestral` and `SDEDPMSolverPP(2)` are better. It needs
    the paper's coordinates: no rectified flow, no zero terminal signal-to-noise ratio. A last step to sigma = 0 is an
    Euler step of the ODE, since noise that is added there would remain in the image.

    Args:
        eta: 0 (= Euler) to 1 (the full SDE).
        noise: gives xi.

    Raises:
        InputError: eta outside [0, 1]; when it steps, a schedule with bounded coordinates.

    Examples:
        >>> import adjointdpm as adp
        >>> sampler = adp.load_bundled("emoji", steps=2, solver=adp.EulerMaruyama())
        >>> sampler(sampler.noise(), sampler.encode("a cat")).shape
        torch.Size([1, 3, 64, 64])
    """

    eta: float = 1.0
    noise: StepNoise = StepNoise()  # noqa: RUF009, it is frozen
    order = 1

    def __post_init__(self) -> None:
        _check(self.eta)

    @property
    def drift(self) -> float:  # type: ignore[override]
        return 1 + self.eta**2

    def step(
        self, f: Derivative, state: State, grid: TimeGrid, i: int, history: History
    ) -> tuple[State, History]:
        now, then = grid[i], grid[i + 1]
        if grid.schedule.bounded:
            raise InputError("EulerMaruyama needs a schedule with finite sigma / alpha; use Ancestral()")
        h = then.tau - now.tau
        if ends_clean(grid, i):
            return combine(state, [(h, f(state, now))]), ()
        spread = self.eta * (now.tau**2 - then.tau**2).sqrt()
        slopes = f(state, now)
        return tuple(
            z + self.drift * h * slope + spread * self.noise.normal(now.tau, then.tau, z)
            for z, slope in zip(state, slopes, strict=True)
        ), ()

    def calls(self, steps: int, clean: bool = False) -> int:
        return steps


@dataclass(frozen=True)
class Ancestral(Solver):
    """DDIM with noise, one call a step; eta = 1 is DDPM's ancestral sampling.

        x' = alpha' x0 + sqrt(sigma'^2 - s^2) eps + s xi,     s = eta sigma' sqrt(1 - (rho' / rho)^2)

    Use it with any schedule. `SDEDPMSolverPP(2)` costs the same and also extrapolates the data prediction.

    Args:
        eta: 0 (= Euler) to 1.
        noise: gives xi.

    Raises:
        InputError: eta outside [0, 1].

    References:
        Song et al., 2021, arXiv 2010.02502.

    Examples:
        >>> import adjointdpm as adp
        >>> sampler = adp.load_bundled("emoji", steps=2, solver=adp.Ancestral(eta=1.0))
        >>> sampler(sampler.noise(), sampler.encode("a cat")).shape
        torch.Size([1, 3, 64, 64])
    """

    eta: float = 1.0
    noise: StepNoise = StepNoise()  # noqa: RUF009, it is frozen
    order = 1

    def __post_init__(self) -> None:
        _check(self.eta)

    @property
    def drift(self) -> float:  # type: ignore[override]
        return 1 + self.eta**2

    @property
    def one_step(self) -> bool:
        return True

    def step(
        self, f: Derivative, state: State, grid: TimeGrid, i: int, history: History
    ) -> tuple[State, History]:
        now, then = grid[i], grid[i + 1]
        if ends_clean(grid, i):  # no noise is left to add; the square roots below have no derivative at 0
            slopes = f(state, now)
            x0 = (z - now.tau * slope for z, slope in zip(state, slopes, strict=True))
            return tuple(then.alpha * each / then.scale for each in x0), ()
        r = _ratio(now, then)
        # sqrt(sigma'^2 - s^2) without cancellation.
        keep = then.sigma * (1 - self.eta**2 * (1 - r**2)).sqrt()
        s = self.eta * then.sigma * (1 - r**2).sqrt()
        out = []
        for z, slope in zip(state, f(state, now), strict=True):
            x0 = z - now.tau * slope
            eps = (now.scale * z - now.alpha * x0) / now.sigma
            xi = self.noise.normal(now.tau, then.tau, z)
            x = then.alpha * x0 + keep * eps + s * xi
            out.append(x / then.scale)
        return tuple(out), ()

    def calls(self, steps: int, clean: bool = False) -> int:
        return steps


@dataclass(frozen=True)
class SDEDPMSolverPP(Solver):
    """SDE-DPM-Solver++ of order 1 (= `Ancestral(1)`) or 2 (2M), one call a step.

        x' = (sigma' / sigma) r x + alpha' (1 - r^2) D + sigma' sqrt(1 - r^2) xi,     r = rho' / rho

    with D the data prediction, extrapolated as in `DPMSolverPP`. Diffusers calls it `sde-dpmsolver++`. Use it for
    stochastic sampling at few steps.

    Args:
        order: 1 or 2.
        noise: gives xi.

    Raises:
        InputError: another order.

    References:
        Lu et al., 2022, arXiv 2211.01095.

    Examples:
        >>> import adjointdpm as adp
        >>> sampler = adp.load_bundled("emoji", steps=2, solver=adp.SDEDPMSolverPP(order=2))
        >>> sampler(sampler.noise(), sampler.encode("a cat")).shape
        torch.Size([1, 3, 64, 64])
    """

    order: int = 2  # type: ignore[misc]
    noise: StepNoise = StepNoise()  # noqa: RUF009, it is frozen
    drift = 2.0

    def __post_init__(self) -> None:
        if self.order not in (1, 2):
            raise InputError(f"SDEDPMSolverPP has orders 1 and 2 (2M), but order = {self.order}")

    def step(
        self, f: Derivative, state: State, grid: TimeGrid, i: int, history: History
    ) -> tuple[State, History]:
        now, then = grid[i], grid[i + 1]
        slopes = f(state, now)
        data = tuple(z - now.tau * slope for z, slope in zip(state, slopes, strict=True))
        ahead = extrapolated(data, history, now, then) if self.order == 2 else data
        r = _ratio(now, then)
        keep, add = then.sigma / now.sigma * r * now.scale, then.alpha * (1 - r**2)
        spread = then.sigma * (1 - r**2).sqrt()
        state = tuple(
            (keep * z + add * d + spread * self.noise.normal(now.tau, then.tau, z)) / then.scale
            for z, d in zip(state, ahead, strict=True)
        )
        return state, (now, data)

    def calls(self, steps: int, clean: bool = False) -> int:
        return steps


def _ratio(now: Time, then: Time) -> Scalar:
    """The ratio rho' / rho, also where rho is infinite."""
    return then.sigma * now.alpha / (then.alpha * now.sigma)


def _check(eta: float) -> None:
    if not 0 <= eta <= 1:
        raise InputError(f"eta must be between 0 (no noise) and 1 (the full SDE), but is {eta}")
