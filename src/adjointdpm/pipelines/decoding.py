"""From latents to an image: the pipeline's own decoding, block by block, without its clamp."""

import copy
from typing import Any

import torch
from torch import Tensor

from .._types import Run, direct
from ..adjoints.block_checkpointing import in_blocks
from .step_probe import ProbedPipeline

__all__ = ["image_of", "without_overflow"]


def image_of(call: ProbedPipeline, vae: Any, latents: Tensor, run: Run = direct) -> Tensor:
    """Images in [0, 1], not clamped, in the latents' dtype.

    Args:
        call: the pipeline; scaling, shift and unpacking of latents are its own.
        vae: its decoder, or None where latents are pixels in [-1, 1].
        run: executes the decoder's blocks, where diffusers knows them.
    """
    if vae is None:
        return latents / 2 + 0.5
    with in_blocks(vae, run):
        return call.decode(latents.to(vae.dtype), vae).to(latents.dtype)


def without_overflow(vae: Any) -> Any:
    """A VAE that float16 overflows (SDXL's says so in its config), in float32.

    The pipeline would switch the shared module there and back, and recomputation would find it changed.
    """
    if vae.dtype == torch.float16 and vae.config.get("force_upcast"):
        return copy.deepcopy(vae).float()
    return vae
