"""A tiny stock pipeline of each family, with a conditioning and a noise for it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch
from torch import Tensor

import adjointdpm as adp
from tests.tiny.family_builders import (
    flux,
    pixart,
    qwen,
    sana,
    stable_diffusion,
    stable_diffusion_3,
    stable_diffusion_xl,
    unconditional,
    z_image,
)
from tests.tiny.parts import WORDS, ddim

__all__ = ["FAMILIES", "WORDS", "Family", "of"]


@dataclass
class Family:
    """One tiny pipeline and what is told to it.

    name       of the family
    make       builds the pipeline
    shapes     of the embeddings, without the batch; integers of them are masks of ones
    guidance   the argument of classifier-free guidance, and a value
    size       height and width to ask for, where the pipeline's own is not tiny
    latents    of one sample
    readable   whether it can encode strings
    """

    name: str
    make: Callable[[], Any]
    shapes: dict[str, tuple[int, ...]]
    latents: tuple[int, ...]
    guidance: tuple[str, float] | None = ("guidance_scale", 3.0)
    size: dict[str, int] = field(default_factory=dict)
    readable: bool = False

    def __str__(self) -> str:
        return self.name

    def cond(self, batch: int = 1, guided: bool = True) -> adp.Cond:
        """Random embeddings, masks whose last entry is off, and the guidance scale."""
        generator = torch.Generator().manual_seed(4)
        out: dict[str, Tensor] = {}
        for prefix in ("", "negative_")[: 1 + (guided and self.guidance is not None)]:
            for name, shape in self.shapes.items():
                if "mask" in name:
                    out[prefix + name] = torch.ones(batch, *shape, dtype=torch.long)
                    out[prefix + name][:, -1] = 0
                else:
                    out[prefix + name] = torch.randn(batch, *shape, generator=generator)
        if guided and self.guidance:
            out[self.guidance[0]] = torch.tensor(self.guidance[1])
        return adp.Cond(out)

    def noise(self, batch: int = 1) -> Tensor:
        return torch.randn(batch, *self.latents, generator=torch.Generator().manual_seed(9))

    def sampler(self, pipe: Any = None, **settings: Any) -> adp.FlowSampler:
        pipe = self.make() if pipe is None else pipe
        return adp.FlowSampler.from_pipeline(pipe, **self.size, **settings)

    def arguments(self, cond: adp.Cond) -> dict[str, Any]:
        """The conditioning as one would give it to the stock pipeline."""
        given: dict[str, Any] = {}
        for name, tensor in cond.items():
            if self.name == "z-image" and tensor.ndim == 3:
                lengths = cond.get(f"{name}_lengths", [None] * len(tensor))
                given[name] = [rows[:n] for rows, n in zip(tensor, lengths, strict=True)]
            elif not name.endswith("_lengths"):
                given[name] = tensor if tensor.ndim else float(tensor)
        if self.guidance and self.guidance[0] not in given:
            given[self.guidance[0]] = 0.0
        if self.name in ("pixart", "sana"):
            given |= {"negative_prompt": None, "use_resolution_binning": False}
        return given | self.size


SMALL = {"height": 8, "width": 8}
SQUARE = (4, 4, 4)
PACKED = (4, 4)
MASKED = {"prompt_embeds": (5, 8), "prompt_attention_mask": (5,)}

FAMILIES = [
    Family("sd", stable_diffusion, {"prompt_embeds": (6, 8)}, SQUARE, readable=True),
    Family(
        "sdxl",
        stable_diffusion_xl,
        {"prompt_embeds": (6, 16), "pooled_prompt_embeds": (8,)},
        SQUARE,
        readable=True,
    ),
    Family(
        "sd3",
        stable_diffusion_3,
        {"prompt_embeds": (7, 16), "pooled_prompt_embeds": (16,)},
        SQUARE,
        readable=True,
    ),
    Family(
        "flux",
        flux,
        {"prompt_embeds": (6, 8), "pooled_prompt_embeds": (8,)},
        PACKED,
        ("true_cfg_scale", 3.0),
        SMALL,
        readable=True,
    ),
    Family("pixart", pixart, MASKED, SQUARE, readable=True),
    Family("sana", sana, MASKED, (4, 16, 16), size={"height": 32, "width": 32}, readable=True),
    Family("z-image", z_image, {"prompt_embeds": (5, 8)}, SQUARE, size=SMALL, readable=True),
    Family(
        "qwen",
        qwen,
        {"prompt_embeds": (5, 8), "prompt_embeds_mask": (5,)},
        (4, 16),
        ("true_cfg_scale", 3.0),
        SMALL,
        readable=True,
    ),
    Family(
        "ddpm", unconditional(diffusers.DDPMPipeline, diffusers.DDPMScheduler), {}, (3, 8, 8), guidance=None
    ),
    Family("ddim", unconditional(diffusers.DDIMPipeline, ddim), {}, (3, 8, 8), guidance=None),
]


def of(name: str) -> Family:
    return next(family for family in FAMILIES if family.name == name)
