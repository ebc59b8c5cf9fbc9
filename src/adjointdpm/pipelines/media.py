"""What a pipeline makes, images, videos or sound, and the decoding of some frames of a video.

    video    the call takes `num_frames`; its latents have fewer frames where the VAE compresses time
    audio    the VAE has a `sampling_rate`

A decoder without convolutions over time, as AnimateDiff's, decodes each frame by itself, so that some frames can be
decoded alone. A causal or 3D decoder, as Wan's and LTX's, makes a frame of its neighbours: all latents are decoded.
"""

import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any, Literal

from torch import Tensor, nn

from ..adjoints.recompute import without_graph
from .call_signature import call_names, default_of
from .gradient_proxy import gradient_proxy

__all__ = ["decodes_frames_alone", "made_shape", "medium_of", "of_frames", "rate_of"]

USUAL_RATE = 8.0
"""Frames a second where nothing says it, as AnimateDiff's examples play them."""


def medium_of(pipe: Any) -> Literal["image", "video", "audio"]:
    """Return what a pipeline makes, by its VAE and the arguments of its call."""
    if _vae_setting(pipe, "sampling_rate") is not None:
        return "audio"
    return "video" if "num_frames" in call_names(type(pipe)) else "image"


def rate_of(pipe: Any, given: float | int | None) -> float | None:
    """Return the frames or samples in a second.

    Args:
        pipe: the pipeline.
        given: frames a second that a user asks for.

    Returns:
        the VAE's sampling rate for sound; for a video what is given, or else the default of the call's `frame_rate`,
        or 8; None for images.
    """
    medium = medium_of(pipe)
    if medium == "audio":
        return float(_vae_setting(pipe, "sampling_rate"))
    if medium == "image":
        return None
    return float(given or default_of(pipe, "frame_rate") or USUAL_RATE)


def made_shape(pipe: Any, arguments: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the shape of one result, found by decoding latents through which no network has run.

    Args:
        pipe: the pipeline.
        arguments: of its call, for one prompt, with return_dict=False.

    Returns:
        the shape without the batch.
    """
    other = gradient_proxy(pipe, _Unchanged())
    vars(other)["_progress_bar_config"] = {"disable": True}
    out = without_graph(partial(other, **arguments))
    return tuple(out[0].shape[1:])


class _Unchanged:
    """Handlers that give the state as the answer of every network, and decode as the pipeline does."""

    def evaluate(self, name: str, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        state = next(iter([*args, *kwargs.values()]))
        return SimpleNamespace(sample=state) if kwargs.get("return_dict", True) else (state,)

    def decode(self, name: str, module: Any, latents: Tensor, *args: Any, **kwargs: Any) -> Any:
        return module.decode(latents.to(module.dtype), *args, **kwargs)

    def stepped(self) -> None:
        """Do nothing."""


def decodes_frames_alone(pipe: Any) -> bool:
    """Return whether each frame of a pipeline's video is decoded from its own latents alone."""
    decoder = getattr(getattr(pipe, "vae", None), "decoder", None)
    if not isinstance(decoder, nn.Module) or not hasattr(pipe, "decode_latents"):
        return False
    return not any(isinstance(part, nn.Conv3d) for part in decoder.modules())


def of_frames(frames: Sequence[int]) -> Callable[[Any], Mapping[str, Any]]:
    """Return what is exchanged in a pipeline so that it decodes some frames alone (see `decodes_frames_alone`).

    Args:
        frames: their numbers.

    Returns:
        a function from the proxy that runs to its exchanged parts.
    """

    def exchanged(proxy: Any) -> Mapping[str, Any]:
        # A cycle would keep the graphs of the run alive.
        own, running = type(proxy).decode_latents, weakref.ref(proxy)

        def decode_latents(latents: Tensor, *args: Any, **kwargs: Any) -> Any:
            return own(running(), latents[:, :, list(frames)], *args, **kwargs)

        return {"decode_latents": decode_latents}

    return exchanged


def _vae_setting(pipe: Any, name: str) -> Any:
    return getattr(getattr(getattr(pipe, "vae", None), "config", None), name, None)
