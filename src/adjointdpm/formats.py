"""The files that other tools read: textual inversion, LoRA and initial noise, each as safetensors.

learned_embeds.safetensors          {token: (vectors, width)}; SDXL: {"clip_l": ..., "clip_g": ...}
pytorch_lora_weights.safetensors    "unet.<module>.lora_A.weight" ..., and the adapter's settings as
                                    metadata: without them a loader takes lora_alpha = r in silence
noise.safetensors                   {"noise": (batch, *shape)}, with how it is sampled as metadata
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from ._types import InputError
from .writing import whole_files, write_file

__all__ = ["load_noise", "save_lora", "save_noise", "save_textual_inversion"]


def save_textual_inversion(path: str | Path, token: str, *vectors: Tensor) -> None:
    """A learned token, as `pipe.load_textual_inversion(path)` reads it.

    For SDXL give both encoders' vectors; load the file's "clip_l" into the first encoder and "clip_g"
    into the second: `pipe.load_textual_inversion(state["clip_l"], token=..., text_encoder=...,
    tokenizer=...)`.

    Args:
        path: of the file, usually `learned_embeds.safetensors`.
        token: its name in a prompt, such as "<my-cat>".
        vectors: (vectors, width) or (width,), one tensor a text encoder.
    Raises:
        InputError: no or more than two tensors, another number of dimensions, or different numbers of
            vectors for the two encoders.
    """
    rows = [each.reshape(1, -1) if each.ndim == 1 else each for each in vectors]
    if len(rows) not in (1, 2) or any(each.ndim != 2 for each in rows) or len({len(r) for r in rows}) != 1:
        given = ", ".join(str(tuple(each.shape)) for each in vectors)
        raise InputError(
            "a token has one tensor (vectors, width) for each of one or two text encoders, with as many "
            f"vectors in both, but was given {given or 'none'}"
        )
    names = [token] if len(rows) == 1 else ["clip_l", "clip_g"]
    tensors = {name: _plain(each) for name, each in zip(names, rows, strict=True)}
    write_file(path, save(tensors, {"format": "pt", "token": token}))


def save_lora(path: str | Path, pipe: Any, adapter: str = "default") -> None:
    """The LoRA of a pipeline's network, its rank and alpha included, for `pipe.load_lora_weights(path)`.

    Args:
        path: a folder; the file in it gets the name that diffusers looks for.
        pipe: a pipeline with an adapter (peft) on its unet or transformer.
        adapter: which one.
    Raises:
        InputError: the network has no such adapter.
    """
    from peft import get_peft_model_state_dict

    name = "transformer" if getattr(pipe, "transformer", None) is not None else "unet"
    network = getattr(pipe, name)
    known = list(getattr(network, "peft_config", {}))
    if adapter not in known:
        raise InputError(
            f"the {name} has no adapter {adapter!r}; it has {', '.join(known) or 'none'}: make one with "
            f"pipe.{name}.add_adapter(LoraConfig(...))"
        )
    weights = get_peft_model_state_dict(network, adapter_name=adapter)
    about = network.peft_config[adapter].to_dict()
    with whole_files(path) as beside:
        type(pipe).save_lora_weights(
            beside, **{f"{name}_lora_layers": weights, f"{name}_lora_adapter_metadata": about}
        )


def save_noise(
    path: str | Path, noise: Tensor, *, scheduler: str, steps: int, seed: int | None = None
) -> None:
    """Initial noise, with what it takes to sample from it again.

    Args:
        path: of the file.
        noise: (batch, *shape).
        scheduler: the name of the scheduler or solver.
        steps: number of steps.
        seed: where it was drawn from; None if it was optimised.
    """
    about = {"scheduler": scheduler, "steps": str(steps), "seed": "" if seed is None else str(seed)}
    write_file(path, save({"noise": _plain(noise)}, {"format": "pt", **about}))


def load_noise(path: str | Path) -> tuple[Tensor, Mapping[str, str]]:
    """The noise in a file, and its metadata.

    Raises:
        InputError: the file holds no noise.
    """
    with safe_open(str(path), "pt") as file:
        if "noise" not in file.keys():  # noqa: SIM118, it is no mapping
            raise InputError(f"{path} holds {', '.join(file.keys()) or 'nothing'}, but no noise")
        return file.get_tensor("noise"), file.metadata() or {}


def _plain(tensor: Tensor) -> Tensor:
    """On the CPU, contiguous, and apart from any graph."""
    return (
        torch.empty_like(tensor, device="cpu", memory_format=torch.contiguous_format).copy_(tensor).detach()
    )
