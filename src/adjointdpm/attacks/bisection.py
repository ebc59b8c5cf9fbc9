"""The smallest change on the way from a point to a success, by bisection.

    x(s) = P(c + s (x - c)),     a success at s = 1 and none at s = 0; the interval between them is halved

P projects onto the ball around c and rounds images to 8 bits. What is found is an upper bound of the distance at which
a classifier errs: there may be a nearer success on the same way, and others in other directions.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ..flow.per_sample import chosen, widened
from .norm_ball import Region

__all__ = ["smallest"]


def smallest(
    succeeds: Callable[[Tensor, int], Tensor], x: Tensor, centre: Tensor, ball: Region, halvings: int = 7
) -> Tensor:
    """Return the nearest point of each way that is a success, of those that were tried.

    Args:
        succeeds: whether each of some points is a success, (batch,), and the number of the halving.
        x: (batch, *shape), successes.
        centre: (batch, *shape), where they started.
        ball: where the points may be.
        halvings: number of points tried on each way, at least 1; the last interval is 2^-halvings of the way.

    Returns:
        points (batch, *shape); x itself where nothing nearer succeeds.

    Examples:
        >>> import torch
        >>> from adjointdpm.attacks import Ball
        >>> from adjointdpm.attacks.bisection import smallest
        >>> start, found = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.8]])
        >>> near = smallest(lambda point, _: point[:, 1] > 0.3, found, start, Ball(1.0))
        >>> bool(0.3 < near[0, 1] < 0.31)
        True
    """
    low, high, best = x.new_zeros(len(x)), x.new_ones(len(x)), x
    for number in range(halvings):
        middle = (low + high) / 2
        moved = centre + widened(middle, x) * (x - centre)
        point = ball.finished(ball.project(moved, centre), centre)
        good = succeeds(point, number).to(x.device)
        low, high = torch.where(good, low, middle), torch.where(good, middle, high)
        best = chosen(good, point, best)
    return best
