"""Sampling for tasks: noise by seeds, rows of a batch, images as their files hold them, and a sampler's parts."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .._types import Cond, InputError
from ..files.diffusers_files import network_in
from ..files.images import as_8_bit
from ..optimization.distributed import Processes
from ..optimization.progress import progress
from ..samplers.base import Sampler


def parts(count: int, size: int | None) -> list[list[int]]:
    """Return the numbers from 0 to count - 1 in lists of at most `size`; in one list if it is None; none of 0."""
    return [part.tolist() for part in torch.arange(count).split(size or count)] if count else []


def each_of(prompts: Sequence[str], number: int) -> list[str]:
    """Return every prompt so many times, one after the other."""
    return [prompt for prompt in prompts for _ in range(number)]


def rows(cond: Cond, items: list[int]) -> Cond:
    """Return the conditioning of some items of a batch."""
    return cond.map(lambda tensor: tensor[items] if tensor.ndim and len(tensor) > 1 else tensor)


def saved(images: Tensor) -> Tensor:
    """Return images as they come back from their files: clamped, rounded to 8 bits, in [0, 1]."""
    return as_8_bit(images).to(images.device, images.dtype) / 255


def sampled(
    sampler: Sampler,
    noise: Tensor,
    cond: Cond,
    batch: int | None,
    processes: Processes | None = None,
    *,
    what: str | None = None,
    quiet: bool = False,
) -> Tensor:
    """Sample images of many noises without a gradient, in parts and over processes.

    Args:
        sampler: makes the images.
        noise: one an image, (n, *shape).
        cond: of each image, or of all.
        batch: images at once; all of them if None.
        processes: over which the images are spread; those of this run if None.
        what: the name of a progress bar; None for no bar.
        quiet: whether there is none whatever its name is.

    Returns:
        the images (n, channels, height, width), or videos or waveforms, the same in all processes.
    """
    processes = processes or Processes.here()
    images = torch.zeros(len(noise), *sampler.output_shape, dtype=noise.dtype, device=noise.device)
    mine = processes.part(range(len(noise)))
    with torch.no_grad(), progress(what or "", len(mine), quiet or what is None) as bar:
        for places in parts(len(mine), batch):
            part = [mine[place] for place in places]
            images[part] = sampler(noise[part], rows(cond, part))
            bar.update(len(part))
    processes.sum_([images])
    return images


def noise_of(sampler: Sampler, seeds: list[int]) -> Tensor:
    """Return one noise a seed: (len(seeds), *shape); a row does not depend on the others."""
    return torch.cat([sampler.noise(1, seed) for seed in seeds])


def needs_rgb(sampler: Sampler, task: str) -> None:
    """Refuse a sampler that makes images or videos of other colors than RGB; sound passes.

    Args:
        sampler: makes the images.
        task: the name of the task, for the message.

    Raises:
        InputError: its images have another number of channels than three.
    """
    if sampler.medium != "audio" and sampler.image_shape[0] != 3:
        raise InputError(
            f"{task} saves images of three channels, but this sampler makes {tuple(sampler.image_shape)}"
        )


def pipeline_of(sampler: Sampler) -> Any:
    """Return the stock pipeline behind a sampler.

    Raises:
        InputError: it has none.
    """
    if sampler.pipe is None:
        raise InputError(
            f"this task needs a sampler over a pipeline, but {type(sampler).__name__} has none"
        )
    return sampler.pipe


def network_of(sampler: Sampler) -> nn.Module:
    """Return the denoising network behind a sampler."""
    return network_in(pipeline_of(sampler))[1] if sampler.network is None else sampler.network
