"""From latents to an image: the pipeline's own decoding without its clamp, block by block or in tiles."""

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .._types import Run, direct
from ..adjoints.block_checkpointing import in_blocks
from .step_probe import ProbedPipeline

__all__ = ["decoded", "tiled", "without_overflow"]

SMALLEST_TILE = 8  # side in latents; in a smaller tile, most of it would be affected by its edge


def decoded(
    call: ProbedPipeline, vae: Any, latents: Tensor, run: Run = direct, *, tile: int | None = None
) -> Tensor:
    """Decode latents with the pipeline's own code.

    Args:
        call: the pipeline, which scales, shifts and unpacks the latents.
        vae: its decoder, or None where latents are pixels in [-1, 1].
        latents: (batch, *latent_shape).
        run: executes the decoder's blocks, if it exposes them, or its tiles.
        tile: the side of the tiles, in latents; None to decode the image as a whole.

    Returns:
        images (batch, channels, height, width), nominally in [0, 1], not clamped, in the latents' dtype.
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
    """The function `decoded` in overlapping tiles, for tiles of 1/2, 1/4, ... of the latents' side.

    Args:
        call: the pipeline.
        vae: its decoder, or None.
        image_shape: (channels, height, width) of one image.

    Returns:
        a function of latents and `run` for each side of a tile, in latents, the largest first; empty if the decoder
        cannot decode in tiles.
    """
    if not (hasattr(vae, "tile_latent_min_size") and hasattr(vae, "tile_sample_min_size")):
        return {}
    side, found = max(image_shape[1:]) // _scale(vae) // 2, {}
    while side >= SMALLEST_TILE:
        side -= side % 4  # the overlap of a quarter is whole
        found[side] = partial(decoded, call, vae, tile=side)
        side //= 2
    return found


def _scale(vae: Any) -> int:
    """The number of pixels a latent, along a side."""
    return 2 ** (len(vae.config.block_out_channels) - 1)


def _in_tiles(vae: Any, side: int, run: Run) -> Any:
    """A VAE that shares this one's modules and decodes in tiles, as diffusers does; `run` executes each tile."""
    tiling = copy.copy(vae)
    tiling._modules = {**vae._modules, "decoder": _Tile(vae.decoder, run)}
    tiling.use_tiling = True
    tiling.tile_latent_min_size, tiling.tile_sample_min_size = side, side * _scale(vae)
    return tiling


class _Tile(nn.Module):
    """A decoder that the policy `run` executes."""

    def __init__(self, decoder: nn.Module, run: Run) -> None:
        super().__init__()
        self.decoder, self._run = decoder, run

    def forward(self, latents: Tensor) -> Tensor:
        return self._run(self.decoder, latents)


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
