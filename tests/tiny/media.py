"""Tiny pipelines that make videos and sound, with text encoders, and their samplers."""

from typing import Any

import torch

import adjointdpm as adp
from tests.tiny.parts import clip, t5, tokenizer
from tests.tiny.pipelines import CASES

SIZES: dict[str, dict[str, Any]] = {
    "AnimateDiffPipeline": {"num_frames": 3, "height": 16, "width": 16},
    "WanPipeline": {"num_frames": 5, "height": 32, "width": 32},
    "LTXPipeline": {"num_frames": 5, "height": 32, "width": 32},
    "StableAudioPipeline": {"audio_end_in_s": 3.0},
}
VIDEOS = ["AnimateDiffPipeline", "WanPipeline", "LTXPipeline"]


def pipeline(name: str) -> Any:
    """A pipeline whose weights are frozen."""
    pipe = CASES[name]()[0]
    torch.manual_seed(5)
    encoder = clip() if name == "AnimateDiffPipeline" else t5()
    pipe.register_modules(text_encoder=encoder.eval(), tokenizer=tokenizer())
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.requires_grad_(False).eval()
    return pipe


def sampler(name: str, pipe: Any = None, **settings: Any) -> adp.PipelineSampler:
    arguments = {**SIZES[name], **settings.pop("arguments", {})}
    return adp.PipelineSampler(
        pipeline(name) if pipe is None else pipe,
        **{"steps": 2, "guidance_scale": 3.0, "arguments": arguments} | settings,
    )
