"""From latents to a picture: the pipeline's own decoding, block by block, without its clamp; or in tiles."""

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .._types import Run, direct
from ..adjoints.block_checkpointing import in_blocks
from .step_probe import ProbedPipeline

__all__ = ["picture", "tiled", "without_overflow"]

SMALLEST_TILE = 8  # of latents: below it, what is seen from a tile's edge is most of it


def picture(
    call: ProbedPipeline, vae: Any, latents: Tensor, run: Run = direct, *, tile: int | None = None
) -> Tensor:
    """Pictures in [0, 1], not clamped, in the latents' dtype.

    Args:
        call: the pipeline; scaling, shift and unpacking of latents are its own.
        vae: its decoder, or None where latents are pixels in [-1, 1].
        run: executes the decoder's blocks, if it can be asked for them, or its tiles.
        tile: side of the tiles, in latents.
    """
    if vae is None:
        return latents / 2 + 0.5
    if tile is not None:
        vae, run = _in_tiles(vae, tile, run), direct
    with in_blocks(vae, run):
        return call.decode(latents.to(vae.dtype), vae).to(latents.dtype)


def tiled(
    call: ProbedPipeline, vae: Any, image_shape: tuple[int, ...]
) -> Mapping[int, Callable[[Tensor, Run], Tensor]]:
    """`picture` in overlapping tiles of each side that halves the latents', the largest first; none if it cannot."""
    if not (hasattr(vae, "tile_latent_min_size") and hasattr(vae, "tile_sample_min_size")):
        return {}
    side, found = max(image_shape[1:]) // _scale(vae) // 2, {}
    while side >= SMALLEST_TILE:
        side -= side % 4  # the overlap of a quarter is whole
        found[side] = partial(picture, call, vae, tile=side)
        side //= 2
    return found


def _scale(vae: Any) -> int:
    """Pixels a latent, along a side."""
    return 2 ** (len(vae.config.block_out_channels) - 1)


def _in_tiles(vae: Any, side: int, run: Run) -> Any:
    """A VAE that shares this one's modules and decodes tile by tile, as diffusers does; `run` makes each tile."""
    gradient_proxy = copy.copy(vae)
    gradient_proxy._modules = {**vae._modules, "decoder": _Tile(vae.decoder, run)}
    gradient_proxy.use_tiling = True
    gradient_proxy.tile_latent_min_size, gradient_proxy.tile_sample_min_size = side, side * _scale(vae)
    return gradient_proxy


class _Tile(nn.Module):
    """A decoder that is run as a policy says."""

    def __init__(self, decoder: nn.Module, run: Run) -> None:
        super().__init__()
        self.decoder, self._run = decoder, run

    def forward(self, latents: Tensor) -> Tensor:
        return self._run(self.decoder, latents)


def without_overflow(vae: Any) -> Any:
    """A VAE that float16 overflows (SDXL's says so in its config), in float32.

    The pipeline would switch the shared module there and back, and recomputation would find it changed.
    """
    if vae.dtype == torch.float16 and vae.config.get("force_upcast"):
        return copy.deepcopy(vae).float()
    return vae
