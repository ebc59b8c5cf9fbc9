"""Learning rates over the steps, by the names that diffusers' training scripts have for them."""

from collections.abc import Callable
from typing import Literal

import torch

from ..._types import InputError

__all__ = ["Schedule", "rate_of"]

Schedule = Literal[
    "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup"
]


def rate_of(name: str, rate: float, warmup: int, steps: int) -> Callable[[int], float]:
    """Return the learning rate of step 0, 1, ... as a fraction of the rate, as `diffusers.optimization` computes it.

    Args:
        name: one of `Schedule`.
        rate: the learning rate.
        warmup: number of steps over which it rises from 0; "constant" has no warmup.
        steps: number of all steps.

    Raises:
        InputError: diffusers refuses these numbers, or there is a warmup where none belongs.
    """
    from diffusers.optimization import get_scheduler

    if name == "constant" and warmup:
        raise InputError(
            f"lr_scheduler constant has no warmup, but lr_warmup_steps is {warmup}; use constant_with_warmup"
        )
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=rate)
    try:
        made = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=steps)
    except ValueError as error:
        raise InputError(f"lr_scheduler {name}: {error}") from error
    (found,) = made.lr_lambdas
    return lambda step: float(found(step))
