"""D-Flow: the noise is optimized through the exact trajectory, by L-BFGS.

    min over |x_T| = |x_T^0| of L(x(x_T, c)),      x_T <- |x_T^0| u / |u|,   u = x_T - t H g

H approximates the inverse Hessian by the last moves and differences of gradients, for each image its own (see
`solvers.lbfgs`). There is no step length to choose: where no pair has a positive curvature yet, H is Polyak's length,
(L - L*) / |g|^2; t is 1, and a quarter of what it was after each trial that is not better than the best noise so far.

Reference: Ben-Hamu et al., 2024, arXiv 2402.14017 (D-Flow, with L-BFGS).
"""

from typing import Any

import torch
from torch import Tensor

from ..._types import Cond
from ...flow.per_sample import chosen, norms, widened
from ...metrics.check import score
from ...samplers.flow_sampler import FlowSampler
from ...solvers.lbfgs import Pair, lbfgs_move
from ..guide.look_ahead import Guided

__all__ = ["optimized_noise"]

_PAIRS = 10
_SHORTER = 0.25


def optimized_noise(
    sampler: FlowSampler, metric: Any, noise: Tensor, cond: Cond, budget: int, target: float
) -> Guided:
    """Optimize the noise on its sphere through the exact trajectory, and keep each image's best.

    Args:
        sampler: the model, its guidance and its steps.
        metric: of finished images.
        noise: as of the sampler.
        cond: as of the sampler.
        budget: denoiser calls of an image, forward and backward; one sampling is made even if it takes more.
        target: value of the metric that is aimed at where no curvature is known.

    Returns:
        Guided: the images, the mean of the best metric after each sampling, and the calls that were made.
    """
    norm = norms(noise)
    best, gradient, scale = noise.detach(), torch.zeros_like(noise), torch.ones_like(norm)
    trial, made, value = best, None, torch.full_like(norm.flatten(), torch.inf)
    pairs, losses, calls = list[Pair](), list[float](), 0
    while True:
        leaf = trial.clone().requires_grad_()
        images = sampler(leaf, cond)
        forward = sampler.stats.nfe_forward
        values = score(metric, images)
        found = values.detach().to(value)
        better, calls = found < value, calls + forward
        made = images.detach() if made is None else chosen(better, images.detach(), made)
        losses.append(float(torch.minimum(found, value).mean()))
        if calls + 2 * forward > budget:  # a backward pass, and the sampling after it
            return Guided(made, losses, calls)
        if bool(better.any()):
            (slope,) = torch.autograd.grad(values.sum(), leaf)
            calls += forward
            moved = widened((better & value.isfinite()).to(slope), slope)  # a pair of zeros has no effect
            pairs = [*pairs, (moved * (trial - best), moved * (slope - gradient))][-_PAIRS:]
            gradient = chosen(better, slope, gradient)
        scale = torch.where(better.view_as(scale), 1.0, _SHORTER * scale)
        best, value = chosen(better, trial, best), torch.minimum(found, value)
        length = (value - target).clamp(min=0) / gradient.flatten(1).square().sum(1).clamp(min=1e-24)
        trial = best - scale * lbfgs_move(gradient, pairs, length.to(gradient))
        trial = trial * (norm / norms(trial))
