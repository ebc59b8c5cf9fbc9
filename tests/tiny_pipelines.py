"""Stock pipelines of many families, small enough to build on the spot: no downloads, no tokenizers.

`CASES[name]()` is a pipeline and the arguments of its call, in which every tensor that can have a gradient
wants one. Graphs are much larger than latents, as in real models.
"""

import inspect
from collections.abc import Callable
from typing import Any

import diffusers
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

__all__ = ["CASES", "draw", "embeds", "first", "sd", "sd_vae", "text_unet", "vp", "weights"]

VP = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
SMALL = {"height": 32, "width": 32, "use_resolution_binning": False}
CASES: dict[str, Callable[[], tuple[Any, dict[str, Any]]]] = {}


def draw(*shape: int, seed: int = 0, wanted: bool = True) -> Tensor:
    """Standard normal, and a variable."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).requires_grad_(wanted)


def first(out: Any) -> Tensor:
    """The picture, film or sound in a pipeline's result."""
    return next(leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor))


def weights(pipe: Any) -> list[Tensor]:
    """The trainable weights of the denoisers."""
    modules = [
        getattr(pipe, name)
        for name in ("unet", "transformer", "transformer_2", "controlnet")
        if getattr(pipe, name, None) is not None
    ]
    return [w for module in modules for w in module.parameters() if w.requires_grad]


def picture(side: int = 16) -> Tensor:
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
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=channels,
        norm_num_groups=4,
        sample_size=16,
        **config,
    ).eval()


def text_unet(**config: Any) -> Any:
    torch.manual_seed(2)
    defaults = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "cross_attention_dim": 8,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": 8,
        "norm_num_groups": 4,
    }
    return diffusers.UNet2DConditionModel(**{**defaults, **config}).eval()


def plain_unet() -> Any:
    torch.manual_seed(2)
    return diffusers.UNet2DModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
        norm_num_groups=4,
    ).eval()


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


@case("StableDiffusionPipeline")
def _() -> Any:
    return sd(diffusers.StableDiffusionPipeline), {**embeds(), "latents": draw(1, 4, 8, 8)}


@case("StableDiffusionImg2ImgPipeline")
def _() -> Any:
    arguments = {
        **embeds(),
        "image": picture(),
        "strength": 1.0,
        "generator": torch.Generator().manual_seed(3),
    }
    return sd(diffusers.StableDiffusionImg2ImgPipeline), arguments


@case("StableDiffusionInpaintPipeline")
def _() -> Any:
    pipe = sd(diffusers.StableDiffusionInpaintPipeline, unet=text_unet(in_channels=9))
    arguments = {
        **embeds(),
        "image": picture().detach(),
        "mask_image": torch.ones(1, 1, 16, 16).tril(),
        "masked_image_latents": draw(1, 4, 8, 8, seed=6),
        "latents": draw(1, 4, 8, 8),
        "height": 16,
        "width": 16,
        "generator": torch.Generator().manual_seed(3),
    }
    return pipe, arguments


@case("StableDiffusionControlNetPipeline")
def _() -> Any:
    unet = text_unet()
    control = diffusers.ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 8))
    for parameter in control.parameters():  # its last layers begin at zero, where gradients are, too
        torch.nn.init.normal_(parameter, std=0.1)
    pipe = sd(diffusers.StableDiffusionControlNetPipeline, unet=unet, controlnet=control.eval())
    return pipe, {**embeds(), "latents": draw(1, 4, 8, 8), "image": picture()}


@case("StableDiffusionXLPipeline")
def _() -> Any:
    return sdxl(diffusers.StableDiffusionXLPipeline), sdxl_arguments()


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


def masks(tokens: int = 5) -> dict[str, Any]:
    kept = torch.ones(1, tokens, dtype=torch.long)
    return {"prompt_attention_mask": kept, "negative_prompt_attention_mask": kept.clone()}


@case("SanaPipeline")
def _() -> Any:
    torch.manual_seed(3)
    vae = diffusers.AutoencoderDC(
        in_channels=3,
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
    )
    pipe = diffusers.SanaPipeline(
        transformer=diffusers.SanaTransformer2DModel(
            patch_size=1,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            num_attention_heads=2,
            attention_head_dim=8,
            num_cross_attention_heads=2,
            cross_attention_head_dim=8,
            cross_attention_dim=16,
            caption_channels=8,
            sample_size=8,
        ).eval(),
        vae=vae.eval(),
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


@case("DDPMPipeline")
def _() -> Any:
    pipe = diffusers.DDPMPipeline(unet=plain_unet(), scheduler=diffusers.DDPMScheduler(clip_sample=False))
    return pipe, {"batch_size": 1, "generator": torch.Generator().manual_seed(3)}


@case("DDIMPipeline")
def _() -> Any:
    pipe = diffusers.DDIMPipeline(unet=plain_unet(), scheduler=diffusers.DDIMScheduler(clip_sample=False))
    return pipe, {"batch_size": 1, "eta": 0.5, "generator": torch.Generator().manual_seed(3)}


@case("LatentConsistencyModelPipeline")
def _() -> Any:
    pipe = sd(
        diffusers.LatentConsistencyModelPipeline,
        scheduler=vp(diffusers.LCMScheduler),
        unet=text_unet(time_cond_proj_dim=8),
    )
    arguments = {"prompt_embeds": draw(1, 5, 8, seed=1), "latents": draw(1, 4, 8, 8)}
    return pipe, {**arguments, "generator": torch.Generator().manual_seed(3)}


@case("LTXPipeline")
def _() -> Any:
    torch.manual_seed(3)
    vae = diffusers.AutoencoderKLLTXVideo(
        in_channels=3,
        out_channels=3,
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        decoder_inject_noise=(False,) * 5,
        upsample_residual=(False,) * 4,
        upsample_factor=(1,) * 4,
        timestep_conditioning=False,
        patch_size=1,
        patch_size_t=1,
        encoder_causal=True,
        decoder_causal=False,
    )
    vae.use_framewise_encoding = vae.use_framewise_decoding = False
    pipe = diffusers.LTXPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=vae.eval(),
        text_encoder=None,
        tokenizer=None,
        transformer=diffusers.LTXVideoTransformer3DModel(
            in_channels=8,
            out_channels=8,
            patch_size=1,
            patch_size_t=1,
            num_attention_heads=2,
            attention_head_dim=8,
            cross_attention_dim=16,
            num_layers=2,
            caption_channels=8,
        ).eval(),
    )
    size = {"height": 32, "width": 32, "num_frames": 5}
    return pipe, {**embeds(), **masks(), "latents": draw(1, 2 * 8 * 8, 8), **size}


@case("WanPipeline")
def _() -> Any:
    torch.manual_seed(3)
    vae = diffusers.AutoencoderKLWan(
        base_dim=3,
        z_dim=16,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
    )

    def transformer() -> Any:
        return diffusers.WanTransformer3DModel(
            patch_size=(1, 2, 2),
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=16,
            out_channels=16,
            text_dim=8,
            freq_dim=16,
            ffn_dim=32,
            num_layers=2,
            cross_attn_norm=True,
            qk_norm="rms_norm_across_heads",
            rope_max_seq_len=32,
        ).eval()

    pipe = diffusers.WanPipeline(
        transformer=transformer(),
        transformer_2=transformer(),
        boundary_ratio=0.8,
        vae=vae.eval(),
        scheduler=diffusers.UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
        text_encoder=None,
        tokenizer=None,
    )
    size = {"height": 32, "width": 32, "num_frames": 5}
    return pipe, {**embeds(), "latents": draw(1, 16, 2, 4, 4), **size}


@case("AnimateDiffPipeline")
def _() -> Any:
    adapter = diffusers.MotionAdapter(
        block_out_channels=(16, 32),
        motion_layers_per_block=1,
        motion_norm_num_groups=4,
        motion_num_attention_heads=2,
    )
    pipe = diffusers.AnimateDiffPipeline(
        vae=sd_vae(),
        text_encoder=None,
        tokenizer=None,
        unet=text_unet(),
        motion_adapter=adapter,
        scheduler=vp(),
    )
    return pipe, {**embeds(), "latents": draw(1, 4, 2, 8, 8), "num_frames": 2, "height": 16, "width": 16}


@case("StableAudioPipeline")
def _() -> Any:
    pipe = diffusers.StableAudioPipeline(
        transformer=diffusers.StableAudioDiTModel(
            sample_size=16,
            in_channels=3,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            num_key_value_attention_heads=2,
            out_channels=3,
            cross_attention_dim=8,
            time_proj_dim=8,
            global_states_input_dim=16,
            cross_attention_input_dim=8,
        ).eval(),
        scheduler=diffusers.EDMDPMSolverMultistepScheduler(
            solver_order=2, prediction_type="v_prediction", sigma_data=1.0
        ),
        vae=diffusers.AutoencoderOobleck(
            encoder_hidden_size=6,
            downsampling_ratios=[1, 2],
            decoder_channels=3,
            decoder_input_channels=3,
            audio_channels=2,
            channel_multiples=[2, 4],
            sampling_rate=4,
        ).eval(),
        projection_model=diffusers.StableAudioProjectionModel(
            text_encoder_dim=8, conditioning_dim=8, min_value=0, max_value=32
        ).eval(),
        text_encoder=None,
        tokenizer=None,
    )
    arguments = embeds() | {"latents": draw(1, 3, 16), "audio_end_in_s": 4.0}
    mask = {"attention_mask": torch.ones(1, 5, dtype=torch.long)}
    return pipe, {**arguments, **mask, "negative_attention_mask": torch.ones(1, 5, dtype=torch.long)}
