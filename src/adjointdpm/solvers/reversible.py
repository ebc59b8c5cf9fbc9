"""An algebraically reversible solver made of two copies of a one-step method.

With Psi_h(tau, z) the increment of the inner method over a step h, coupled states y and w (w_0 = y_0), and
a coupling 0 < c <= 1 (McCallum and Foster, 2024, arXiv 2410.11648):

    y' = c y + (1 - c) w + Psi_h(tau, w)            w = w' + Psi_{-h}(tau', y')
    w' = w - Psi_{-h}(tau', y')                     y = (y' - (1 - c) w - Psi_h(tau, w)) / c

The right column inverts the left one to rounding, which c < 1 amplifies by 1 / c a step. A step that ends at sigma = 0
leaves w as it is (Psi_{-h} = 0), since nothing is evaluated there. It is inverted in the same way.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from .._types import Derivative, InputError, State
from ..flow.grids import TimeGrid
from .base import History, Solver, ends_clean
from .runge_kutta import Euler, RungeKutta

__all__ = ["Coupled"]

Slope = Callable[..., State]


@dataclass(frozen=True)
class Coupled(Solver):
    """The reversible coupling of a Runge-Kutta method, whose states can be rebuilt instead of stored.

        y' = c y + (1 - c) w + Psi_h(w),     w' = w - Psi_{-h}(y')

    It has the order of the inner method at twice the number of calls. `Reversible()` needs this solver. A last step to
    sigma = 0 is an Euler step. If you only need a gradient in little memory, `Checkpointed()` with a plain solver costs
    less.

    Args:
        inner: `Euler()`, `Midpoint()`, `Heun()` or `RK4()`.
        coupling: c in (0, 1]. A value below 1 damps the difference of the two copies, and amplifies rounding in
            reverse.
        second: w at the noisy end, (batch, *shape), where it is not y: half of what `sampler.invert_coupled` returns.

    Raises:
        InputError: another inner solver, or a coupling outside (0, 1].

    References:
        McCallum and Foster, 2024, arXiv 2410.11648.

    Examples:
        >>> import adjointdpm as adp
        >>> sampler = adp.load_bundled("emoji", steps=2, solver=adp.Coupled(adp.Euler()))
        >>> sampler(sampler.noise(), sampler.encode("a cat")).shape
        torch.Size([1, 3, 64, 64])
    """

    inner: Solver = Euler()  # noqa: RUF009, it is frozen
    coupling: float = 0.999
    second: Tensor | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.inner, RungeKutta):
            raise InputError(
                f"Coupled needs a one-step inner solver (Euler, Midpoint, Heun or RK4), but got {self.inner!r}"
            )
        if not 0 < self.coupling <= 1:
            raise InputError(f"coupling must be in (0, 1], but is {self.coupling}")

    @property
    def order(self) -> int:  # type: ignore[override]
        return self.inner.order

    def step(
        self, f: Derivative, state: State, grid: TimeGrid, i: int, history: History
    ) -> tuple[State, History]:
        w = history or (state if self.second is None else (self.second,))
        ahead = self.increment(f, w, grid, i)
        state = tuple(
            self.coupling * y + (1 - self.coupling) * z + p for y, z, p in zip(state, w, ahead, strict=True)
        )
        back = self.increment(f, state, grid, i, backwards=True)
        return state, tuple(z - p for z, p in zip(w, back, strict=True))

    def increment(
        self, f: Derivative, state: State, grid: TimeGrid, i: int, backwards: bool = False
    ) -> State:
        """The increment Psi of the inner method over one step.

        Args:
            f: d state / d tau.
            state: the state from which the step departs.
            grid: the grid.
            i: the number of the step.
            backwards: depart from node i + 1 instead of node i.

        Returns:
            the increment; zero if the step departs backwards from sigma = 0.
        """
        if backwards and ends_clean(grid, i):
            return tuple(0 * z for z in state)
        pair = TimeGrid(grid.schedule, grid.times[i : i + 2])
        after, _ = self.inner.step(f, state, pair.reversed() if backwards else pair, 0, ())
        return tuple(z - start for z, start in zip(after, state, strict=True))

    def unstep(self, f: Derivative, y: Tensor, w: Tensor, grid: TimeGrid, i: int) -> tuple[Tensor, Tensor]:
        """The two states from which a step arrives at two given ones.

            w = w' + Psi_{-h}(y'),     y = (y' - (1 - c) w - Psi_h(w)) / c

        Args:
            f: d state / d tau.
            y: y' of the arrival node.
            w: w' of the arrival node.
            grid: the grid.
            i: the number of the step.

        Returns:
            y and w of the departure node.
        """
        (back,) = self.increment(f, (y,), grid, i, backwards=True)
        w = w + back
        (ahead,) = self.increment(f, (w,), grid, i)
        return self.rebuilt(y, w, ahead), w

    def rebuilt(self, y: Tensor, w: Tensor, ahead: Tensor) -> Tensor:
        """The state y of the departure node.

            y = (y' - (1 - c) w - Psi_h(w)) / c

        Args:
            y: y' of the arrival node.
            w: w of the departure node.
            ahead: Psi_h(w).

        Returns:
            y of the departure node.
        """
        return (y - (1 - self.coupling) * w - ahead) / self.coupling

    def calls(self, steps: int, clean: bool = False) -> int:
        return 2 * self.inner.calls(steps - clean) + clean
