"""Text encoders on another device than the rest of a pipeline: tokens go there, and embeddings come back.

    rows = E(ids on the encoder's device) on the pipeline's device        exact gradient: a copy's is a copy

The place of an encoder is where its weights are, and nothing else is stored: `pipe.text_encoder_2.to("cuda:1")` is all
that a user does. The pipeline's own code expects one device; it runs on a copy or a proxy (see `gradient_proxy`) whose
`device` leaves such encoders out and whose encoders are called by `called_there`. Encoders with hooks of accelerate or
diffusers, which place modules themselves (offloading), are left to these.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from .._types import InputError

__all__ = ["called_there", "check_text_device", "encoders_apart", "own_device", "placed"]


def own_device(pipe: Any) -> torch.device:
    """The device of a pipeline, text encoders left out: the first one that is not the CPU, as diffusers chooses.

    Args:
        pipe: the pipeline.

    Returns:
        the device; the CPU where there is no module but text encoders.
    """
    encoders = _text_encoders(pipe)
    modules = [part for name, part in vars(pipe).items() if name not in encoders]
    found = [_device(part) for part in modules if isinstance(part, nn.Module)]
    here = [device for device in found if device is not None]
    fast = [device for device in here if device.type not in ("cpu", "meta")]
    return next(iter([*fast, *here]), torch.device("cpu"))


def encoders_apart(pipe: Any) -> dict[str, nn.Module]:
    """The text encoders, by name, whose weights are on another device than the rest of their pipeline."""
    device = own_device(pipe)
    return {
        name: part for name, part in _text_encoders(pipe).items() if _device(part) not in (None, device)
    }


def called_there(encoder: nn.Module, here: torch.device, *args: Any, **kwargs: Any) -> Any:
    """Call a text encoder on its own device.

    Some pipelines move the tokens there themselves, and no pipeline moves all results back.

    Args:
        encoder: the text encoder.
        here: the device of the results.
        *args: the call's positional arguments.
        **kwargs: the call's keyword arguments.

    Returns:
        the result, its tensors moved.
    """
    args, kwargs = _moved((args, kwargs), _device(encoder))
    return _moved(encoder(*args, **kwargs), here)


def check_text_device(pipe: Any, text_device: torch.device | None) -> None:
    """Raise if a pipeline without text encoders is given a device for them.

    Args:
        pipe: the pipeline.
        text_device: the device, or None.

    Raises:
        InputError: it is.
    """
    if text_device is not None and not _text_encoders(pipe):
        raise InputError(
            f"{type(pipe).__name__} has no text encoder to be put on {text_device}; leave text_device out"
        )


def placed(pipe: Any, device: torch.device, text_device: torch.device | None) -> Any:
    """Move a pipeline to a device, and its text encoders to another one without a stay on the first.

    Args:
        pipe: the pipeline, which is changed.
        device: where it goes.
        text_device: where its text encoders go; with the rest if None.

    Returns:
        the pipeline.

    Raises:
        InputError: a device for text encoders, and there is none.
    """
    check_text_device(pipe, text_device)
    if text_device is None:
        return pipe.to(device)
    encoders = _text_encoders(pipe)
    for name, part in vars(pipe).items():
        if isinstance(part, nn.Module):
            part.to(text_device if name in encoders else device)
    return pipe


def _text_encoders(pipe: Any) -> dict[str, nn.Module]:
    """The text encoders that no hook places, by name."""
    return {
        name: part
        for name, part in vars(pipe).items()
        if "text_encoder" in name and isinstance(part, nn.Module) and not _hooked(part)
    }


def _hooked(part: nn.Module) -> bool:
    return hasattr(part, "_hf_hook") or hasattr(part, "_diffusers_hook")


def _device(part: nn.Module) -> torch.device | None:
    weight = next(part.parameters(), None)
    return None if weight is None else weight.device


def _moved(values: Any, device: torch.device | None) -> Any:
    return tree_map(lambda each: each.to(device) if isinstance(each, Tensor) else each, values)
