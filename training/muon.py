"""Muon for the matrices, AdamW for everything else (Jordan, 2024; Liu et al., 2025, arXiv 2502.16982).

The momentum of a matrix is replaced by the nearest orthogonal one, by five Newton-Schulz steps in bfloat16, times
0.2 sqrt(max(rows, columns)), which gives updates the size of AdamW's, so that one learning rate serves both.
A convolution is the matrix of its output channels by all the rest. `torch.optim.Muon` takes two-dimensional
weights only.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

__all__ = ["Muon"]

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the odd polynomial, steep at 0 (Jordan, 2024)


class Muon(Optimizer):
    """Muon for matrices, and AdamW for all other weights.

    Args:
        weights: those of at least two dimensions and 32 rows and columns are treated as matrices.
        lr: learning rate, in AdamW's units.
    """

    def __init__(self, weights: Iterable[nn.Parameter], lr: float, weight_decay: float = 1e-2) -> None:
        super().__init__(list(weights), {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:
        """One update of every weight that has a gradient."""
        for group in self.param_groups:
            for weight in (w for w in group["params"] if w.grad is not None):
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                matrix = weight.ndim >= 2 and min(len(weight), weight[0].numel()) >= 32
                update = self._orthogonal(weight) if matrix else self._adam(weight)
                weight.sub_(update, alpha=group["lr"])

    def _orthogonal(self, weight: Tensor) -> Tensor:
        state = self.state[weight]
        if not state:
            state["momentum"] = torch.zeros_like(weight)
        momentum = state["momentum"].lerp_(weight.grad, 0.05)
        update = torch.lerp(weight.grad, momentum, 0.95).reshape(len(weight), -1)
        scale = 0.2 * max(update.shape) ** 0.5
        return (scale * orthogonalised(update)).view(weight.shape)

    def _adam(self, weight: Tensor, betas: tuple[float, float] = (0.9, 0.99)) -> Tensor:
        state = self.state[weight]
        if not state:
            state |= {
                "step": torch.zeros(()),
                "mean": torch.zeros_like(weight),
                "square": torch.zeros_like(weight),
            }
        count = int(state["step"].add_(1))
        state["mean"].lerp_(weight.grad, 1 - betas[0])
        state["square"].lerp_(weight.grad.square(), 1 - betas[1])
        root = (state["square"] / (1 - betas[1] ** count)).sqrt_().add_(1e-8)
        return state["mean"] / (1 - betas[0] ** count) / root


def orthogonalised(matrix: Tensor) -> Tensor:
    """U V^T of the singular value decomposition U S V^T, roughly: singular values end between 0.7 and 1.2."""
    a, b, c = COEFFICIENTS
    x = matrix.bfloat16()
    flip = x.shape[0] > x.shape[1]
    x = x.T if flip else x
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.T if flip else x).float()
