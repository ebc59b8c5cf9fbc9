"""The adjoint SDE of a stochastic purification, solved anew backwards by torchsde, as DiffPure differentiates.

With a = dL/dy and rho as in `solvers.stochastic`, along the same path of W:

    dy = (1 + eta^2) eps drho + eta sqrt(2 rho) dW          y(end) as it was reached, then solved for again
    da = -(1 + eta^2) a^T deps/dy drho                      a(end) = dL/dy(end)

Both are solved backwards by Euler steps, each of which evaluates the network at its departure, the arrival of the
forward step, and at a state that differs from that of the forward pass. So it is the gradient of neither the steps nor,
at a finite number of them, the SDE. It is here to measure what it hides.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from .._types import InputError, Stats
from ..adjoints import Adjoint, Backprop
from ..adjoints.base import differentiable_inputs, wants_gradient
from ..solvers import EulerMaruyama
from ..solvers.base import ends_clean
from ..solvers.integrate import IVP

__all__ = ["SdeAdjoint"]


@dataclass(frozen=True)
class SdeAdjoint(Adjoint):
    """torchsde's adjoint along the sampler's own path: the forward pass is that of `EulerMaruyama`, to rounding.

        N f + N (f + b) of time for N steps;  two states and one graph of memory

    Raises:
        InputError: torchsde is not installed; another solver; a schedule with bounded coordinates; or a gradient of
            more than the initial state.

    References:
        Li et al., 2020, arXiv 2001.01328; Nie et al., 2022, arXiv 2205.07460.
    """

    def solve(self, ivp: IVP, stats: Stats) -> Tensor:
        if not wants_gradient(ivp):
            return Backprop().solve(ivp, stats)
        solver = ivp.solver
        if not isinstance(solver, EulerMaruyama) or not solver.eta or ivp.grid.schedule.bounded:
            raise InputError(
                f"the adjoint SDE is solved along the path of EulerMaruyama(eta) with eta above 0, but the steps are "
                f"those of {solver!r}; take solver=EulerMaruyama(), or another gradient"
            )
        if any(each is not ivp.initial for each in differentiable_inputs(ivp)):
            raise InputError(
                "the adjoint SDE gives the gradient of the image alone, but the prompt, the times or the network's "
                "weights require one, too; call requires_grad_(False) on them"
            )
        try:
            from torchsde import sdeint_adjoint
        except ImportError as error:
            raise InputError('the adjoint SDE needs torchsde: pip install "adjointdpm[sde]"') from error
        sde, span = _ReverseSDE(ivp, solver, stats), ivp.initial.new_tensor([0.0, len(ivp.grid)])
        way: Any = {"method": "euler", "adjoint_method": "euler", "dt": 1.0, "adjoint_params": ()}
        ends: Any = sdeint_adjoint(sde, ivp.initial.flatten(1), span, bm=_path(ivp, solver), **way)
        return ends[-1].view_as(ivp.initial)


class _ReverseSDE(nn.Module):
    """The SDE for torchsde, in the number s of steps taken: drho/ds and the noise of a step are constant within it."""

    noise_type, sde_type = "diagonal", "ito"

    def __init__(self, ivp: IVP, solver: EulerMaruyama, stats: Stats) -> None:
        super().__init__()
        self._ivp, self._solver, self._stats = replace(ivp, influence=None), solver, stats
        self._asked = False

    def f_and_g(self, s: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The drift and the noise level of each entry."""
        if not self._asked:  # torchsde's first call is for the shapes
            self._asked = True
            return torch.zeros_like(y), torch.zeros_like(y)
        # The network is evaluated at the node s. The step is that which departs from it, and backwards, where torchsde
        # switches gradients on, that which arrives at it.
        node, back, grid = round(float(s)), torch.is_grad_enabled(), self._ivp.grid
        i = node - back
        now, then, clean = grid[i], grid[i + 1], ends_clean(grid, i)
        drift = 1.0 if clean else self._solver.drift
        spread = 0.0 if clean else self._solver.eta * float(now.tau**2 - then.tau**2) ** 0.5
        slope = self._ivp.velocity(y.view(-1, *self._ivp.initial.shape[1:]), grid[node]).flatten(1)
        self._stats.nfe_forward += 1
        self._stats.nfe_backward += back
        return drift * (then.tau - now.tau).to(y) * slope, torch.full_like(y, spread)


def _untyped(kind: Any) -> Any:
    return kind


def _path(ivp: IVP, solver: EulerMaruyama) -> Any:
    """The noise of the solver's steps as a path for torchsde."""
    from torchsde import BaseBrownian

    like, grid, base = ivp.initial, ivp.grid, _untyped(BaseBrownian)

    class Path(base):
        """xi of step i as the increment of W over [i, i + 1]."""

        shape, dtype, device = like.flatten(1).shape, like.dtype, like.device
        levy_area_approximation = "none"

        def __call__(self, ta: Any, tb: Any = None, return_U: bool = False, return_A: bool = False) -> Any:
            i = round(float(ta))
            return solver.noise.normal(grid[i].tau, grid[i + 1].tau, like).flatten(1)

        def __repr__(self) -> str:
            return "Path()"

    return Path()
