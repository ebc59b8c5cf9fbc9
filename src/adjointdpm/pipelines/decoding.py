"""From latents to an image: the pipeline's own decoding, block by block, without its clamp."""

import copy
from typing import Any

import torch
from torch import Tensor

from .._types import Run, direct
from ..adjoints.block_checkpointing import in_blocks
from .step_probe import ProbedPipeline

__all__ = ["decoded", "without_overflow"]


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
