"""From latents to a picture: the pipeline's own decoding, block by block, without its clamp."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ._types import Run, direct
from .probe import ProbedPipeline

__all__ = ["outermost", "picture", "without_overflow"]


def picture(call: ProbedPipeline, vae: Any, latents: Tensor, run: Run = direct) -> Tensor:
    """Pictures in [0, 1], not clamped, in the latents' dtype.

    Args:
        call: the pipeline; scaling, shift and unpacking of latents are its own.
        vae: its decoder, or None where latents are pixels in [-1, 1].
        run: executes the decoder's blocks, if it can be asked for them.
    """
    if vae is None:
        return latents / 2 + 0.5
    # The VAE's own switch for checkpointing lets us say how a block is run. A user's is left on.
    switch = (
        run is not direct and vae._supports_gradient_checkpointing and not vae.is_gradient_checkpointing
    )
    if switch:
        vae.enable_gradient_checkpointing(outermost(run))
    try:
        return call.decode(latents.to(vae.dtype), vae).to(latents.dtype)
    finally:
        if switch:
            vae.disable_gradient_checkpointing()


def without_overflow(vae: Any) -> Any:
    """A VAE that float16 overflows (SDXL's says so in its config), in float32.

    The pipeline would switch the shared module there and back, and recomputation would find it changed.
    """
    if vae.dtype == torch.float16 and vae.config.get("force_upcast"):
        return copy.deepcopy(vae).float()
    return vae


def outermost(run: Run) -> Callable[..., Any]:
    """`run` for a decoder's blocks, but not for blocks within them.

    The switch is off again when a block is recomputed; it must then save what it saved the first time.
    """
    inside = False

    def each(block: nn.Module, *args: Any) -> Any:
        nonlocal inside
        if inside:
            return block(*args)
        inside = True
        try:
            return run(block, *args)
        finally:
            inside = False

    return each
