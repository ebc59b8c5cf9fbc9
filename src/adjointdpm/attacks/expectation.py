"""The mean of a loss over a classifier's own random draws, and its gradient, at the memory of one draw.

    l(x) = 1/k sum_j l(f(x; xi_j), y),     dl/dx = 1/k sum_j dl(f(x; xi_j), y)/dx

Each draw xi_j seeds torch's global generator by a key, so that all draws are fresh, and the same again in a repeated
run (expectation over transformation: Athalye et al., 2018, arXiv 1707.07397).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..optimization.seeds import forked
from .losses import loss, margin

__all__ = ["Estimate", "Expectation", "is_random", "over_draws"]


@dataclass(frozen=True, eq=False)
class Estimate:
    """Means over draws at one point.

    values     (batch,), the mean loss, which an attack raises
    margins    (batch,), the mean margin, negative where the attack succeeds in the mean
    gradient   (batch, *shape), of the mean loss
    """

    values: Tensor
    margins: Tensor
    gradient: Tensor


@dataclass(frozen=True, eq=False)
class Expectation:
    """A classifier's loss as a mean over draws.

    Args:
        classifier: (batch, *shape) to logits, with noise of torch's global generator or none.
        loss: the name of the loss that is raised.
        draws: k >= 1.
        batch: number of points at once; all of them if None.
        seed: of all draws.
    """

    classifier: nn.Module
    loss: str
    draws: int
    batch: int | None
    seed: int

    def __call__(
        self,
        x: Tensor,
        labels: Tensor,
        *name: str | int,
        towards: Tensor | None = None,
        target: Tensor | None = None,
    ) -> Estimate:
        """Return the means at a point.

        Args:
            x: (batch, *shape).
            labels: (batch,).
            name: names the point, so that no other point shares its draws.
            towards: see `losses.loss`.
            target: see `losses.margin`.
        """
        values, margins = torch.zeros(2, len(x), dtype=x.dtype, device=x.device)
        gradient = torch.zeros_like(x)
        for part in torch.arange(len(x), device=x.device).split(self.batch or len(x)):
            ys, ts, gs = labels[part], _rows(towards, part), _rows(target, part)
            leaf = x[part].detach().requires_grad_()
            for j in range(self.draws):
                with forked(self.seed, "draw", *name, int(part[0]), j):
                    logits = self.classifier(leaf)
                    found = loss(self.loss, logits, ys, ts)
                    (g,) = torch.autograd.grad(found.sum(), leaf)
                gradient[part] += g / self.draws
                values[part] += found.detach() / self.draws
                margins[part] += margin(logits.detach(), ys, gs) / self.draws
        return Estimate(values, margins, gradient)


def over_draws(
    classifier: Callable[[Tensor], Tensor], x: Tensor, draws: int, batch: int | None, *name: str | int
) -> Tensor:
    """Return logits of several draws without a gradient, (draws, batch, classes).

    Args:
        classifier: (batch, *shape) to logits.
        x: (batch, *shape).
        draws: their number, at least 1.
        batch: number of points at once; all of them if None.
        name: names the draws, so that no others are the same.
    """
    found: list[Tensor] = []
    with torch.no_grad():
        for j in range(draws):
            parts: list[Tensor] = []
            for i, part in enumerate(x.split(batch or len(x))):
                with forked(*name, "draw", i, j):
                    parts.append(classifier(part))
            found.append(torch.cat(parts))
    return torch.stack(found)


def is_random(classifier: Callable[[Tensor], Tensor], x: Tensor) -> bool:
    """Return whether a classifier's logits of the same images differ from draw to draw.

    Args:
        classifier: (batch, *shape) to logits.
        x: (batch, *shape).
    """
    a, b = over_draws(classifier, x, 2, None, "is it random")
    return float((a - b).abs().max()) > 1e-5 * float(a.abs().max())


def _rows(given: Tensor | None, part: Tensor) -> Tensor | None:
    return None if given is None else given[part]
