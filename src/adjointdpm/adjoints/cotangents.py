"""Where along a trajectory a gradient grows, vanishes or overflows: dL/dz at each node of the backward pass.

A backward pass that overflows leaves NaN in every gradient and does not say at which step. This module checks the
cotangent of each state when it arrives, and raises an error at the first that is not finite, naming the step.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial

import torch
from torch import Tensor

from .._types import NonFiniteError, Stats, Time
from ..flow.grids import TimeGrid

__all__ = ["CotangentNorms", "cotangents"]

_KEPT: ContextVar[list[tuple[float, Tensor]] | None] = ContextVar("_KEPT", default=None)


@contextmanager
def cotangents() -> Iterator[list[tuple[float, Tensor]]]:
    """A context that keeps the cotangents of every sampling made inside it; this holds N states more.

    Yields:
        the list of (t, dL/dz at t), in the order of the backward pass.
    """
    kept: list[tuple[float, Tensor]] = []
    token = _KEPT.set(kept)
    try:
        yield kept
    finally:
        _KEPT.reset(token)


class CotangentNorms:
    """Records |dL/dz| at the nodes of one sampling into `stats.trace`.

    Args:
        stats: the record of the sampling, which receives (t, norm).
        grid: the forward grid, by which the messages number the steps.

    Raises:
        NonFiniteError: in the backward pass, at the first cotangent that is NaN or infinite.
    """

    def __init__(self, stats: Stats, grid: TimeGrid) -> None:
        self._stats, self._times, self._steps = stats, grid.times, len(grid)
        self._kept = _KEPT.get()  # read now, since a backward pass may run in another thread

    def follow(self, z: Tensor, time: Time) -> None:
        """Record the cotangent of a state as soon as autograd has computed it.

        Args:
            z: the state; ignored if it requires no gradient.
            time: its instant.
        """
        if z.requires_grad:
            z.register_hook(partial(self.record, time=time))

    def record(self, cotangent: Tensor, time: Time) -> None:
        """Record dL/dz at an instant.

        Args:
            cotangent: dL/dz, (batch, *shape).
            time: the instant.
        """
        t, cotangent = float(time.t), cotangent.detach()
        if self._stats.trace and self._stats.trace[-1][0] == t:
            return  # a sampling that was restarted with guidance split has hooked its start twice
        norm = float(torch.linalg.vector_norm(cotangent, dtype=_wide(cotangent)))
        self._stats.trace.append((t, norm))
        if self._kept is not None:
            self._kept.append((t, cotangent.clone()))
        self.check(cotangent, time, "of the state")

    def check(self, cotangent: Tensor, time: Time, what: str) -> None:
        """Raise if a cotangent is not finite.

        Args:
            cotangent: the cotangent.
            time: its instant.
            what: which cotangent it is, for the message.

        Raises:
            NonFiniteError: it holds NaN or infinity.
        """
        if bool(torch.isfinite(cotangent).all()):
            return
        step = int((self._times.detach() >= time.t.detach()).sum()) - 1
        is_nan = bool(torch.isnan(cotangent).any())
        later = [norm for _, norm in self._stats.trace if norm < float("inf")]
        last = f"; the last finite one, a step later, had norm {later[-1]:g}" if later else ""
        raise NonFiniteError(
            f"the gradient {what} became {'NaN' if is_nan else 'infinite'} in the backward pass at step "
            f"{max(step, 0)} of {self._steps} (t = {float(time.t):g}){last}. Check the network's dtype "
            "(float16 overflows above 65504: use bfloat16), the size of the loss, or the guidance scale"
        )


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
