"""What an attack must be compared with: random points of the same ball, at the same number of classifier calls."""

import torch
from torch import Tensor, nn

from ..flow.per_sample import chosen, normal_rows
from ..optimization.seeds import key
from .expectation import over_draws
from .losses import margin
from .norm_ball import Region

__all__ = ["random_search"]


def random_search(
    classifier: nn.Module,
    x: Tensor,
    labels: Tensor,
    ball: Region,
    candidates: int,
    *,
    draws: int = 1,
    batch: int | None = None,
    seed: int = 0,
) -> Tensor:
    """Return the random point of the lowest mean margin, for each centre.

    Args:
        classifier: (batch, *shape) to logits.
        x: (batch, *shape), the balls' centres; images have 8 bits.
        labels: (batch,), the true classes.
        ball: where the points may be.
        candidates: number of points tried for each centre, at least 1.
        draws: number of draws of a randomized classifier for each.
        batch: number of points at once; all of them if None.
        seed: of the points and the draws.

    Raises:
        InputError: a batch normalization is in training mode.
        NonFiniteError: a logit is NaN.
    """
    best, least = x, torch.full_like(x.flatten(1)[:, 0], torch.inf)
    for turn in range(candidates):
        drawn = normal_rows([key(seed, "random", turn, i) for i in range(len(x))], x)
        point = ball.finished(ball.random(drawn, x), x)
        mean = torch.zeros_like(least)
        for logits in over_draws(classifier, point, draws, batch, seed, "random", turn):
            mean += margin(logits, labels) / draws
        better = mean < least
        least = torch.where(better, mean, least)
        best = chosen(better, point, best)
    return best
