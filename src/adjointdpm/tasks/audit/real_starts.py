"""Starts of an audit that are real images: the noise from which the sampler makes each of them.

It is found by inverting the sampler's own steps (`Sampler.invert`), and audited as random noise is.
"""

import torch
from torch import Tensor

from ..._types import Cond, InputError
from ...optimization.progress import progress
from ...samplers.base import Sampler
from ...solvers.inversion import InversionError, check_invertible
from ..sampling import rows
from .settings import AuditSettings

__all__ = ["check_images", "inverted"]


def check_images(images: Tensor, sampler: Sampler, prompts: int, settings: AuditSettings) -> None:
    """Refuse images that an audit cannot start at.

    Args:
        images: (prompts, *image_shape), in [0, 1].
        sampler: makes images.
        prompts: their number.
        settings: of the audit.

    Raises:
        InputError: another number or size of images, settings that ask for several starts of one image, or steps that
            cannot be inverted one by one.
    """
    if sampler.solver is not None:
        check_invertible(sampler.solver)
    if sampler.solver is None or not sampler.solver.one_step:
        raise InputError(
            "an audit from images inverts the sampler's steps one by one, which takes a one-step solver of our own, "
            "such as Heun() (--solver heun). Other samplings are inverted as a whole, which takes long for each image"
        )
    if tuple(images.shape) != (prompts, *sampler.image_shape):
        raise InputError(
            f"images must be one of {tuple(sampler.image_shape)} for each of {prompts} prompts, but are "
            f"{tuple(images.shape)}; repeat a prompt for each of its images, and resize them"
        )
    if not bool(((images >= 0) & (images <= 1)).all()):
        raise InputError(
            f"images lie in [0, 1], but reach from {float(images.min()):g} to {float(images.max()):g}"
        )
    for name in ("num_starts", "best_of"):
        if getattr(settings, name) != 1:
            raise InputError(
                f"an image has one start, the noise that the sampler is inverted to, but {name} is "
                f"{getattr(settings, name)}; leave it at 1"
            )


def inverted(sampler: Sampler, images: Tensor, cond: Cond, quiet: bool) -> Tensor:
    """Return the noise of each image, (images, *shape); NaN where the inversion does not converge.

    Args:
        sampler: makes the images.
        images: (images, *image_shape), in [0, 1].
        cond: of as many.
        quiet: whether no progress is shown.

    Raises:
        InputError: the sampler's steps cannot be inverted.
    """
    found: list[Tensor] = []
    like = sampler.noise(1)
    with torch.no_grad(), progress("inverted images", len(images), quiet) as bar:
        for i in range(len(images)):
            try:
                found.append(sampler.invert(images[i : i + 1].to(like), rows(cond, [i])))
            except InversionError:
                found.append(torch.full_like(like, torch.nan))
            bar.update()
    return torch.cat(found)
