"""Pipelines that make films or sound."""

import warnings
from typing import Any

import diffusers
import torch

from tests.tiny.cases import case, draw, embeds, masks, sd_vae, text_unet, vp


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


def _oobleck() -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.nn.utils.weight_norm` is deprecated", FutureWarning)
        return diffusers.AutoencoderOobleck(
            encoder_hidden_size=6,
            downsampling_ratios=[1, 2],
            decoder_channels=3,
            decoder_input_channels=3,
            audio_channels=2,
            channel_multiples=[2, 4],
            sampling_rate=4,
        )


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
        vae=_oobleck().eval(),
        projection_model=diffusers.StableAudioProjectionModel(
            text_encoder_dim=8, conditioning_dim=8, min_value=0, max_value=32
        ).eval(),
        text_encoder=None,
        tokenizer=None,
    )
    arguments = embeds() | {"latents": draw(1, 3, 16), "audio_end_in_s": 4.0}
    mask = {"attention_mask": torch.ones(1, 5, dtype=torch.long)}
    return pipe, {**arguments, **mask, "negative_attention_mask": torch.ones(1, 5, dtype=torch.long)}
