"""How an attack steps: PGD with momentum, and APGD, which chooses its own step sizes.

P projects onto the ball around the start, d(g) is the steepest step of the ball's radius along g

PGD     m_k = mu m_{k-1} + g_k / |g_k|_1,     x_{k+1} = P(x_k + s d(m_k))
APGD    z = P(x_k + s d(g_k)),     x_{k+1} = P(x_k + a (z - x_k) + (1 - a) (x_k - x_{k-1})),     a = 3/4, first 1
        s = 2 radii, halved at a checkpoint where at most rho of the steps since the last one raised the loss, or
        where neither s nor the best loss has changed since then; it then goes on from the best point
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from .._types import Range, check_settings
from ..flow.per_sample import chosen, widened
from .expectation import Estimate
from .norm_ball import Region

__all__ = ["APGD", "PGD", "Method", "checkpoints"]

Evaluate = Callable[[Tensor, int], Estimate]
"""The means at a point, and the number of the step."""


class Method(ABC):
    """A way to choose the next point of an attack."""

    @abstractmethod
    def search(self, evaluate: Evaluate, start: Tensor, centre: Tensor, ball: Region, steps: int) -> Tensor:
        """Evaluate `steps` points, and return the step sizes in radii, (steps, batch).

        Args:
            evaluate: gives the means at a point, and remembers the point if it is the best.
            start: (batch, *shape), the first point.
            centre: (batch, *shape), of the ball.
            ball: where the points may be.
            steps: number of points, at least 1.
        """


@dataclass(frozen=True)
class PGD(Method):
    """Projected gradient ascent with steps of one length, and with momentum.

    Args:
        rate: Length of a step, above 0, as a fraction of the ball's radius.
        momentum: mu, from 0 to 1.

    References:
        Madry et al., 2018, arXiv 1706.06083; Dong et al., 2018, arXiv 1710.06081 (momentum).
    """

    rate: Annotated[float, Range(0, open_low=True)] = 0.25
    momentum: Annotated[float, Range(0, 1)] = 0.0

    def __post_init__(self) -> None:
        check_settings(self)

    def search(self, evaluate: Evaluate, start: Tensor, centre: Tensor, ball: Region, steps: int) -> Tensor:
        x, velocity = start, torch.zeros_like(start)
        for k in range(steps):
            gradient = evaluate(x, k).gradient
            length = gradient.flatten(1).abs().sum(1).clamp(min=1e-30)
            velocity = self.momentum * velocity + gradient / widened(length, x)
            x = ball.project(x + self.rate * ball.direction(velocity, centre), centre)
        return torch.full((steps, len(x)), self.rate)


@dataclass(frozen=True)
class APGD(Method):
    """Auto-PGD: the step is halved where it no longer pays, and the search goes on from the best point.

    Use it by default: it has no step length to tune. The losses that it compares are means over draws.

    Args:
        rho: Least share of steps between two checkpoints that must raise the loss, from 0 to 1.

    References:
        Croce and Hein, 2020, arXiv 2003.01690, algorithm 1.
    """

    rho: Annotated[float, Range(0, 1)] = 0.75

    def __post_init__(self) -> None:
        check_settings(self)

    def search(self, evaluate: Evaluate, start: Tensor, centre: Tensor, ball: Region, steps: int) -> Tensor:
        x, now = start, evaluate(start, 0)
        before, value, gradient = x, now.values, now.gradient
        best, most, slope = x, value, gradient  # the best point, its loss and its gradient
        size = torch.full_like(value, 2.0)
        last, rose, size_then, most_then = 0, torch.zeros_like(value), size, most
        marks, sizes = checkpoints(steps), [size]
        for k in range(1, steps):
            ahead = ball.project(x + widened(size, x) * ball.direction(gradient, centre), centre)
            a = 1.0 if k == 1 else 0.75
            before, x = x, ball.project(x + a * (ahead - x) + (1 - a) * (x - before), centre)
            now = evaluate(x, k)
            rose = rose + (now.values > value)
            value, gradient = now.values, now.gradient
            better = value > most
            most = torch.where(better, value, most)
            best, slope = (chosen(better, new, old) for new, old in ((x, best), (gradient, slope)))
            if k in marks:
                halve = (rose <= self.rho * (k - last)) | ((size == size_then) & (most <= most_then))
                last, rose, size_then, most_then = k, torch.zeros_like(rose), size, most
                size = torch.where(halve, size / 2, size)
                value = torch.where(halve, most, value)
                x, gradient = (chosen(halve, new, old) for new, old in ((best, x), (slope, gradient)))
            sizes.append(size)
        return torch.stack(sizes).cpu()


def checkpoints(steps: int) -> list[int]:
    """Return the steps at which APGD looks at its step size.

        w_j = ceil(p_j n),     p_0 = 0,  p_1 = 0.22,  p_{j+1} = p_j + max(p_j - p_{j-1} - 0.03, 0.06)

    Args:
        steps: n, number of steps.
    """
    found: list[int] = []
    hundredths, step = 22, 22  # whole numbers, since sums of 0.03 would round up past a checkpoint
    while hundredths < 100:
        found.append(math.ceil(hundredths * steps / 100))
        step = max(step - 3, 6)
        hundredths += step
    return found
