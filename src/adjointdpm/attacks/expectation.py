"""The mean of a loss over a classifier's own random draws, and its gradient, at the memory of one draw.

    l(x) = 1/k sum_j l(f(x; xi_j), y),     dl/dx = 1/k sum_j dl(f(x; xi_j), y)/dx

Each draw xi_j seeds torch's global generator by a key, so that all draws are fresh, and the same again in a repeated
run (expectation over transformation: Athalye et al., 2018, arXiv 1707.07397).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .._types import InputError, NonFiniteError
from ..optimization.seeds import forked
from .losses import loss, margin

__all__ = ["Estimate", "Expectation", "is_random", "over_draws"]

_ADVICE = (
    "look in the classifier for a square root, a norm, a logarithm or a division at zero, and run it and what stands "
    "before it in float32 if they are in half precision"
)


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

        Raises:
            NonFiniteError: a loss or its gradient is not finite in one of the draws.
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
                _check_finite(self.loss, found.detach(), g)
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

    Raises:
        InputError: a batch normalization is in training mode.
        NonFiniteError: a logit is NaN, of which a label would be read all the same.
    """
    _check_mode(classifier)
    found: list[Tensor] = []
    with torch.no_grad():
        for j in range(draws):
            parts: list[Tensor] = []
            for i, part in enumerate(x.split(batch or len(x))):
                with forked(*name, "draw", i, j):
                    parts.append(classifier(part))
            found.append(torch.cat(parts))
            if bool(found[-1].isnan().any()):
                raise NonFiniteError(f"the classifier's logits are NaN; {_ADVICE}")
    return torch.stack(found)


def is_random(classifier: Callable[[Tensor], Tensor], x: Tensor) -> bool:
    """Return whether a classifier's logits of the same images differ from draw to draw.

    Args:
        classifier: (batch, *shape) to logits.
        x: (batch, *shape).
    """
    a, b = over_draws(classifier, x, 2, None, "is it random")
    return float((a - b).abs().max()) > 1e-5 * float(a.abs().max())


def _check_mode(classifier: Any) -> None:
    """Refuse a classifier whose logits of an image depend on the other images of the batch.

    Raises:
        InputError: a batch normalization is in training mode.
    """
    for name, module in classifier.named_modules() if isinstance(classifier, nn.Module) else ():
        if isinstance(module, _BatchNorm) and module.training:
            raise InputError(
                f"the classifier's {name or 'network'}, a {type(module).__name__}, is in training mode, so that its "
                "logits of an image depend on the other images of the batch; call its eval() first"
            )


def _check_finite(name: str, values: Tensor, gradient: Tensor) -> None:
    """Refuse what no step can follow: the attack would stand still there, and the classifier seem robust.

    Raises:
        NonFiniteError: a value or a gradient is not finite.
    """
    bad = ~(values.isfinite() & gradient.flatten(1).isfinite().all(1))
    if bool(bad.any()):
        what = "the gradient of the loss" if bool(values.isfinite().all()) else "the loss"
        raise NonFiniteError(
            f"{what} {name} is not finite for {int(bad.sum())} of {len(bad)} points, where the attack would stand "
            f"still and the classifier would seem robust; {_ADVICE}"
        )


def _rows(given: Tensor | None, part: Tensor) -> Tensor | None:
    return None if given is None else given[part]
