"""A stock pipeline of each family with tiny parts, text encoders and tokenizer included."""

from collections.abc import Callable
from typing import Any

import diffusers
import torch

from tests.tiny.parts import (
    VP,
    clip,
    dc,
    ddim,
    gemma2,
    kl,
    qwen3,
    sana_transformer,
    t5,
    tokenizer,
    unet2d,
    unprompted,
)


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    return pipe


def seeded(build: Callable[[], Any]) -> Callable[[], Any]:
    def make() -> Any:
        torch.manual_seed(0)
        return quiet(build())

    return make


@seeded
def stable_diffusion() -> Any:
    return diffusers.StableDiffusionPipeline(
        vae=kl(),
        text_encoder=clip(),
        tokenizer=tokenizer(),
        unet=unet2d(),
        scheduler=ddim(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@seeded
def stable_diffusion_xl() -> Any:
    unet = unet2d(
        cross_attention_dim=16,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + 8,
    )
    scheduler = diffusers.EulerDiscreteScheduler(**VP, steps_offset=1, timestep_spacing="leading")
    return diffusers.StableDiffusionXLPipeline(
        vae=kl(),
        text_encoder=clip(),
        text_encoder_2=clip(projected=True),
        tokenizer=tokenizer(),
        tokenizer_2=tokenizer(),
        unet=unet,
        scheduler=scheduler,
        add_watermarker=False,
    )


@seeded
def stable_diffusion_3() -> Any:
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=4,
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=4,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=8,
        pooled_projection_dim=16,
        pos_embed_max_size=8,
    )
    return diffusers.StableDiffusion3Pipeline(
        vae=kl(shift_factor=0.1, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=clip(projected=True),
        text_encoder_2=clip(projected=True),
        text_encoder_3=t5(16),
        tokenizer=tokenizer(),
        tokenizer_2=tokenizer(),
        tokenizer_3=tokenizer(),
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def flux_scheduler() -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler(
        shift=3.0, use_dynamic_shifting=True, base_image_seq_len=4, max_image_seq_len=64
    )


@seeded
def flux() -> Any:
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=8,
        pooled_projection_dim=8,
        guidance_embeds=True,
        axes_dims_rope=(2, 2, 4),
    )
    return diffusers.FluxPipeline(
        vae=kl(1, shift_factor=0.1, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=clip(),
        tokenizer=tokenizer(),
        text_encoder_2=t5(),
        tokenizer_2=tokenizer(),
        transformer=transformer,
        scheduler=flux_scheduler(),
    )


@seeded
def pixart() -> Any:
    transformer = diffusers.PixArtTransformer2DModel(
        sample_size=4,
        patch_size=2,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=4,
        in_channels=4,
        out_channels=8,
        cross_attention_dim=8,
        caption_channels=8,
        use_additional_conditions=False,
    )
    return diffusers.PixArtSigmaPipeline(
        tokenizer=tokenizer(),
        text_encoder=t5(),
        vae=kl(),
        transformer=transformer,
        scheduler=diffusers.DPMSolverMultistepScheduler(beta_schedule="linear"),
    )


@seeded
def sana() -> Any:
    scheduler = diffusers.DPMSolverMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0
    )
    return diffusers.SanaPipeline(
        tokenizer=tokenizer(),
        text_encoder=gemma2(),
        vae=dc(),
        transformer=sana_transformer(),
        scheduler=scheduler,
    )


@seeded
def z_image() -> Any:
    transformer = diffusers.ZImageTransformer2DModel(
        in_channels=4,
        dim=16,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=8,
        axes_dims=[2, 2, 4],
        axes_lens=[64, 16, 16],
    )
    # Its padding tokens are made uninitialised; a loaded model brings its own.
    for token in (transformer.x_pad_token, transformer.cap_pad_token):
        torch.nn.init.normal_(token)
    return diffusers.ZImagePipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=kl(shift_factor=0.1, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=qwen3(),
        tokenizer=tokenizer(),
        transformer=transformer,
    )


@seeded
def qwen() -> Any:
    vae = diffusers.AutoencoderKLQwenImage(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 2],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[1.0, 2.0, 0.5, 1.5],
    )
    transformer = diffusers.QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=8,
        axes_dims_rope=(2, 2, 4),
    )
    pipe = diffusers.QwenImagePipeline(
        scheduler=flux_scheduler(),
        vae=vae,
        text_encoder=qwen3(),
        tokenizer=tokenizer(),
        transformer=transformer,
    )
    # The template is sixty words of another vocabulary, which are cut off again after encoding.
    pipe.prompt_template_encode, pipe.prompt_template_encode_start_idx = "a {}", 2
    return pipe


def unconditional(kind: Any, scheduler: Any) -> Callable[[], Any]:
    @seeded
    def make() -> Any:
        return kind(unet=unprompted(), scheduler=scheduler())

    return make
