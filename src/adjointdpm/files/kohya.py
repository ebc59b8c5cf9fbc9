"""LoRA files in the layout of kohya's scripts, which ComfyUI and AUTOMATIC1111 read.

W' = W + (alpha / r) up down        alpha in the file, one tensor a layer
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save

from .._types import InputError
from .atomic_write import write_file

__all__ = ["save_kohya"]


def save_kohya(path: Path, lora: Path, pipe: Any) -> Path | None:
    """Write a LoRA of diffusers' layout in kohya's, by diffusers' own converter.

    Use it for a LoRA of a UNet, such as that of Stable Diffusion and SDXL. Other networks have no such layout in
    diffusers; ComfyUI reads diffusers' own file for them.

    Args:
        path: the file to write.
        lora: a file that `save_lora` wrote, of one rank and one alpha.
        pipe: the pipeline it belongs to, which reads the new file back for comparison.

    Returns:
        `path`; None, and nothing is written, where the LoRA is not of a UNet, or is of one with motion modules, which
        the layout does not know.

    Raises:
        InputError: the installed diffusers reads the new file as other weights, or the folder cannot be written.
    """
    from diffusers.utils.state_dict_utils import (
        convert_state_dict_to_kohya,
        convert_unet_state_dict_to_peft,
    )

    with safe_open(str(lora), "pt") as read:
        tensors = {name: read.get_tensor(name) for name in read.keys()}  # noqa: SIM118, it is no mapping
        about = json.loads((read.metadata() or {}).get("lora_adapter_metadata", "{}"))
    if not all(name.startswith("unet.") for name in tensors) or any(
        ".motion_modules." in n for n in tensors
    ):
        return None
    rank, alpha = about["unet.r"], about["unet.lora_alpha"]
    made: dict[str, torch.Tensor] = convert_state_dict_to_kohya(tensors)
    for name in made:
        if name.endswith(".alpha"):  # the converter writes the rank
            made[name] = torch.tensor(float(alpha))
    found, scales = type(pipe).lora_state_dict(dict(made))[:2]
    plain = convert_unet_state_dict_to_peft(found)
    same = set(plain) == set(tensors) and all(torch.equal(plain[name], tensors[name]) for name in plain)
    if not same or set((scales or {}).values()) != {float(alpha)}:
        raise InputError(
            "the installed diffusers reads the LoRA in kohya's layout as other weights than it wrote; convert "
            f"{lora} by the tool that is to read it"
        )
    metadata = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(alpha),
    }
    write_file(
        path, save({name: each.contiguous() for name, each in made.items()}, {"format": "pt", **metadata})
    )
    return path
