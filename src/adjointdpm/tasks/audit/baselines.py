"""What an attack must be compared with: the same number of denoiser calls without a gradient.

    random   fresh points of the ball's full size, the best kept
    SPSA     g ~ (l(x + c d) - l(x - c d)) d,  d random signs     (Spall, 1992; Uesato et al., 2018, 1802.05666)

Both see the attack's own objective, its own ball and its own way to choose the best.
"""

import torch
from torch import Tensor

from ..._types import Cond
from ...attacks.norm_ball import Ball
from ...flow.per_sample import normal_rows, widened
from ...optimization.progress import progress
from ...optimization.seeds import key
from ...samplers.base import Sampler
from ..sampling import sampled
from .attack import Objective

__all__ = ["random_search", "spsa"]


class _Best:
    """The best candidate of each start so far."""

    def __init__(self, start: Tensor, objective: Objective) -> None:
        self.noise, self.objective = start.clone(), objective
        self.rank = torch.full((len(start),), torch.inf, dtype=torch.float64, device=start.device)

    def offer(self, noise: Tensor, images: Tensor) -> Tensor:
        """Return the losses of candidates, of which those that are better are kept."""
        with torch.no_grad():
            values, rank, _ = self.objective(images, list(range(len(noise))))
        assert rank is not None
        better = rank.double() < self.rank
        self.rank[better], self.noise[better] = rank.double()[better], noise[better]
        return values


def _drawn(like: Tensor, seed: int, name: str, turn: int) -> Tensor:
    """Return a standard normal row for each start, which no other start or turn shares."""
    return normal_rows([key(seed, name, turn, i) for i in range(len(like))], like)


def random_search(
    sampler: Sampler,
    cond: Cond,
    start: Tensor,
    ball: Ball,
    objective: Objective,
    calls: int,
    seed: int,
    batch: int,
    quiet: bool = False,
) -> Tensor:
    """Return the best of `calls` random perturbations of the ball's full size, for each start."""
    best = _Best(start, objective)
    with progress("random noise", calls, quiet) as bar:
        for turn in range(calls):
            moved = ball.direction(_drawn(start, seed, "random", turn), start)
            noise = ball.project(start + moved, start)
            best.offer(noise, sampled(sampler, noise, cond, batch))
            bar.update()
    return best.noise


def spsa(
    sampler: Sampler,
    cond: Cond,
    start: Tensor,
    ball: Ball,
    objective: Objective,
    calls: int,
    seed: int,
    batch: int,
    rate: float,
    quiet: bool = False,
) -> Tensor:
    """Return the best that `calls` samplings find along estimated gradients, two samplings an estimate."""
    best, x = _Best(start, objective), start.clone()
    with progress("SPSA", calls // 2, quiet) as bar:
        for turn in range(calls // 2):
            d = _drawn(start, seed, "spsa", turn).sign()
            probe = 0.5 * ball.direction(d, start)
            pair = [ball.project(x + probe, start), ball.project(x - probe, start)]
            up, down = (best.offer(noise, sampled(sampler, noise, cond, batch)) for noise in pair)
            slope = widened(up - down, d) * d
            x = ball.project(x - rate * ball.direction(slope, start), start)
            bar.update()
    return best.noise
