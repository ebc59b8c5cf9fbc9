"""What the tiny pipelines of the tests are called with, and where they are listed."""

import inspect
from collections.abc import Callable
from typing import Any

import diffusers
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from tests.tiny.parts import VP, kl, unet2d, unprompted

WIDE = {"sample_size": 8, "block_out_channels": (16, 32), "attention_head_dim": 8, "norm_num_groups": 4}
SMALL = {"height": 32, "width": 32, "use_resolution_binning": False}
CASES: dict[str, Callable[[], tuple[Any, dict[str, Any]]]] = {}


def draw(*shape: int, seed: int = 0, wanted: bool = True) -> Tensor:
    """Standard normal, and a variable."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).requires_grad_(wanted)


def first(out: Any) -> Tensor:
    """The image, film or sound in a pipeline's result."""
    return next(leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor))


def weights(pipe: Any) -> list[Tensor]:
    """The trainable weights of the denoisers."""
    modules = [
        getattr(pipe, name)
        for name in ("unet", "transformer", "transformer_2", "controlnet")
        if getattr(pipe, name, None) is not None
    ]
    return [w for module in modules for w in module.parameters() if w.requires_grad]


def image(side: int = 16) -> Tensor:
    """In [0, 1], and a variable."""
    return draw(1, 3, side, side, seed=5).detach().sigmoid().requires_grad_()


def number(value: float) -> Tensor:
    return torch.tensor(value, requires_grad=True)


def vp(kind: Any = diffusers.DDIMScheduler, **config: Any) -> Any:
    clip = {"clip_sample": False} if kind in (diffusers.DDIMScheduler, diffusers.DDPMScheduler) else {}
    # Stable Diffusion's pipelines warn where there is no offset.
    offset = {"steps_offset": 1} if "steps_offset" in inspect.signature(kind).parameters else {}
    return kind(**{**VP, **clip, **offset, **config})


def sd_vae(channels: int = 4, **config: Any) -> Any:
    torch.manual_seed(1)
    wide = {"block_out_channels": (8, 8), "norm_num_groups": 4, "sample_size": 16}
    return kl(channels, **wide, **config).eval()


def text_unet(**config: Any) -> Any:
    torch.manual_seed(2)
    return unet2d(**{**WIDE, **config}).eval()


def plain_unet() -> Any:
    torch.manual_seed(2)
    return unprompted(**WIDE).eval()


def case(name: str) -> Any:
    def known(make: Callable[[], tuple[Any, dict[str, Any]]]) -> Any:
        def made() -> tuple[Any, dict[str, Any]]:
            torch.manual_seed(0)
            pipe, arguments = make()
            pipe.set_progress_bar_config(disable=True)
            return pipe, {"output_type": "pt", **arguments}

        CASES[name] = made
        return made

    return known


def sd(kind: Any, scheduler: Any = None, unet: Any = None, **parts: Any) -> Any:
    """A pipeline of Stable Diffusion's parts, whichever its class takes."""
    return kind(
        vae=sd_vae(),
        text_encoder=None,
        tokenizer=None,
        unet=unet or text_unet(),
        scheduler=scheduler or vp(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        **parts,
    )


def embeds(width: int = 8, tokens: int = 5) -> dict[str, Any]:
    return {
        "prompt_embeds": draw(1, tokens, width, seed=1),
        "negative_prompt_embeds": draw(1, tokens, width, seed=2),
        "guidance_scale": number(4.0),
    }


def masks(tokens: int = 5) -> dict[str, Any]:
    kept = torch.ones(1, tokens, dtype=torch.long)
    return {"prompt_attention_mask": kept, "negative_prompt_attention_mask": kept.clone()}


def sdxl(kind: Any, **parts: Any) -> Any:
    unet = text_unet(
        addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=56
    )
    return kind(
        vae=sd_vae(),
        text_encoder=None,
        text_encoder_2=None,
        tokenizer=None,
        tokenizer_2=None,
        unet=unet,
        scheduler=vp(diffusers.EulerDiscreteScheduler),
        **parts,
    )


def sdxl_arguments() -> dict[str, Any]:
    return {
        **embeds(),
        "pooled_prompt_embeds": draw(1, 8, seed=3),
        "negative_pooled_prompt_embeds": draw(1, 8, seed=4),
        "latents": draw(1, 4, 8, 8),
    }
