"""From latents to an image by the pipeline's own decoding, block by block and without its clamp; and back."""

import copy
from typing import Any

import torch
from torch import Tensor

from .._types import InputError, Run, direct
from ..adjoints.block_checkpointing import in_blocks
from .step_probe import ProbedPipeline

__all__ = ["decoded", "encoded_image", "without_overflow"]


def decoded(call: ProbedPipeline, vae: Any, latents: Tensor, run: Run = direct) -> Tensor:
    """Images in [0, 1], not clamped, in the latents' dtype.

    Args:
        call: the pipeline, which scales, shifts and unpacks the latents.
        vae: its decoder, or None where latents are pixels in [-1, 1].
        run: executes the decoder's blocks, where diffusers exposes them.

    Returns:
        images (batch, channels, height, width), nominally in [0, 1].
    """
    if vae is None:
        return latents / 2 + 0.5
    with in_blocks(vae, run):
        return call.decode(latents.to(vae.dtype), vae).to(latents.dtype)


def encoded_image(vae: Any, images: Tensor, latent_shape: tuple[int, ...]) -> Tensor:
    """The latents of images by a VAE: the mode of its distribution, shifted and scaled as pipelines do.

        z = (mode(2 x - 1) - shift) * scale

    Args:
        vae: its encoder, or None where latents are pixels in [-1, 1].
        images: (batch, 3, height, width), in [0, 1].
        latent_shape: the shape of one image's latents.

    Returns:
        latents (batch, *latent_shape), in the images' dtype, with a graph to the images.

    Raises:
        InputError: the pipeline scales its latents in another way, or packs them.
    """
    if vae is None:
        return 2 * images - 1
    config = vae.config
    if getattr(config, "scaling_factor", None) is None or getattr(config, "latents_mean", None) is not None:
        raise InputError(
            f"a {type(vae).__name__} has no single scaling_factor of its latents, so it is not known here how an "
            "image becomes latents; start from latents of your own"
        )
    found = vae.encode((2 * images - 1).to(vae.dtype))
    if not hasattr(found, "latent_dist"):
        raise InputError(f"a {type(vae).__name__} gives no distribution of latents; start from your own")
    z = found.latent_dist.mode().to(images.dtype)
    z = (z - (getattr(config, "shift_factor", None) or 0.0)) * config.scaling_factor
    if z.shape[1:] != latent_shape:
        raise InputError(
            f"this pipeline packs its latents: those of an image are {tuple(z.shape[1:])}, but it starts from "
            f"{tuple(latent_shape)}; start from latents of your own"
        )
    return z


def without_overflow(vae: Any) -> Any:
    """A copy in float32 of a VAE that overflows in float16, as SDXL's does by its config; any other VAE itself.

    The pipeline would cast the shared module to float32 and back, and recomputation would find it changed.

    Args:
        vae: the VAE.

    Returns:
        the copy or the VAE.
    """
    if vae.dtype == torch.float16 and vae.config.get("force_upcast"):
        return copy.deepcopy(vae).float()
    return vae
