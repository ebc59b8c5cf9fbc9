"""Checks of a metric before the long work: its values on gray images, their shape, finiteness and gradient.

Of a metric of sound, the trial is quiet noise: at silence, a metric of levels in decibels is not finite.
"""

import torch
from torch import Tensor

from .._types import AdjointDPMError, InputError, NonFiniteError
from .base import Metric
from .standard_input import closed_stdin


def check_metric(metric: Metric, shape: tuple[int, ...], batch: int, like: Tensor) -> None:
    """Call the metric on gray images, so that a wrong one fails before anything is sampled.

    Standard input is closed during the call.

    Args:
        metric: the metric.
        shape: (channels, height, width) of one image, (frames, channels, height, width) of one video, or
            (channels, samples) of sound.
        batch: number of images, at least 1.
        like: a tensor with the dtype and device of the images.

    Raises:
        InputError: gradients are switched off, the metric fails or exits, or its result has no gradient or
            another shape.
        NonFiniteError: the metric's result is NaN or infinite.
        AdjointDPMError: the metric itself raises one of this library's errors.
    """
    if not torch.is_grad_enabled():
        raise InputError(
            "gradients are switched off here (torch.no_grad or torch.set_grad_enabled(False)); "
            "ask for them inside torch.enable_grad()"
        )
    trial = trial_of(shape, batch, like)
    try:
        with closed_stdin():
            score(metric, trial.requires_grad_())
    except AdjointDPMError:
        raise
    except (Exception, SystemExit) as error:  # a metric is anybody's code
        what = "exits" if isinstance(error, SystemExit) else "fails"
        about = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        noun = {2: "quiet noise", 3: "gray images", 4: "gray videos"}[len(shape)]
        raise InputError(f"the metric {what} on {noun} of shape {tuple(trial.shape)} ({about})") from error


def trial_of(shape: tuple[int, ...], batch: int, like: Tensor) -> Tensor:
    """Return gray images or videos, or quiet noise in place of sound.

    Args:
        shape: of one of them.
        batch: number of them.
        like: a tensor with the wanted dtype and device.

    Returns:
        (batch, *shape).
    """
    if len(shape) > 2:
        return torch.full((batch, *shape), 0.5, dtype=like.dtype, device=like.device)
    generator = torch.Generator().manual_seed(0)
    return 0.1 * torch.randn(batch, *shape, generator=generator, dtype=like.dtype).to(like.device)


def score(metric: Metric, images: Tensor) -> Tensor:
    """Evaluate a metric and check its result: the shape, the gradient and finiteness.

    Args:
        metric: the metric.
        images: (batch, channels, height, width); or videos, or sound.

    Returns:
        the metric of each image, (batch,).

    Raises:
        InputError: the result is no tensor of shape (batch,), or has no gradient although the images require one.
        NonFiniteError: a value is NaN or infinite.
    """
    values = metric(images)
    if not isinstance(values, Tensor) or values.shape != (len(images),):
        got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise InputError(
            f"a metric returns one value an image, here a tensor of shape ({len(images)},), "
            f"but returned {got}"
        )
    if images.requires_grad and not values.requires_grad:
        raise InputError(
            "the metric's result has no gradient: look for .detach(), .item(), argmax or a no_grad in it"
        )
    if not bool(torch.isfinite(values).all()):
        raise NonFiniteError(f"the metric returned {values.detach().tolist()}, which is not finite")
    return values
