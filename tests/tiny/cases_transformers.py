"""Pipelines around a transformer."""

from typing import Any

import diffusers
import torch

from tests.tiny.cases import SMALL, case, draw, embeds, masks, number, sd_vae, sdxl_arguments, vp
from tests.tiny.parts import dc, sana_transformer


@case("StableDiffusion3Pipeline")
def _() -> Any:
    pipe = diffusers.StableDiffusion3Pipeline(
        transformer=diffusers.SD3Transformer2DModel(
            sample_size=8,
            patch_size=1,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            caption_projection_dim=16,
            joint_attention_dim=8,
            pooled_projection_dim=8,
            pos_embed_max_size=8,
        ).eval(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=sd_vae(shift_factor=0.06),
        **dict.fromkeys(f"{part}{i}" for part in ("text_encoder", "tokenizer") for i in ("", "_2", "_3")),  # type: ignore[arg-type]
    )
    return pipe, {**sdxl_arguments(), "height": 16, "width": 16}


@case("FluxPipeline")
def _() -> Any:
    pipe = diffusers.FluxPipeline(
        transformer=diffusers.FluxTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=8,
            pooled_projection_dim=8,
            axes_dims_rope=(4, 4, 8),
            guidance_embeds=True,
        ).eval(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=sd_vae(shift_factor=0.06),
        text_encoder=None,
        text_encoder_2=None,
        tokenizer=None,
        tokenizer_2=None,
    )
    arguments = sdxl_arguments() | {"latents": draw(1, 16, 16), "guidance_scale": 3.5}
    return pipe, {**arguments, "true_cfg_scale": number(2.0), "height": 16, "width": 16}


@case("PixArtSigmaPipeline")
def _() -> Any:
    pipe = diffusers.PixArtSigmaPipeline(
        transformer=diffusers.PixArtTransformer2DModel(
            sample_size=8,
            num_layers=4,
            patch_size=2,
            attention_head_dim=8,
            num_attention_heads=2,
            caption_channels=8,
            in_channels=4,
            cross_attention_dim=16,
            out_channels=8,
        ).eval(),
        vae=sd_vae(),
        text_encoder=None,
        tokenizer=None,
        scheduler=vp(diffusers.DPMSolverMultistepScheduler),
    )
    return pipe, {**embeds(), **masks(), "negative_prompt": None, "latents": draw(1, 4, 8, 8), **SMALL}


@case("SanaPipeline")
def _() -> Any:
    torch.manual_seed(3)
    pipe = diffusers.SanaPipeline(
        transformer=sana_transformer(layers=2, head=8, size=8).eval(),
        vae=dc().eval(),
        text_encoder=None,
        tokenizer=None,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    )
    return pipe, {**embeds(), **masks(), "negative_prompt": None, "latents": draw(1, 4, 8, 8), **SMALL}


@case("DiTPipeline")
def _() -> Any:
    pipe = diffusers.DiTPipeline(
        transformer=diffusers.DiTTransformer2DModel(
            sample_size=8,
            num_layers=4,
            patch_size=2,
            attention_head_dim=8,
            num_attention_heads=2,
            in_channels=4,
            out_channels=8,
        ).eval(),
        vae=sd_vae(),
        scheduler=vp(),
    )
    arguments = {"class_labels": [1], "guidance_scale": number(4.0)}
    return pipe, {**arguments, "generator": torch.Generator().manual_seed(3)}
