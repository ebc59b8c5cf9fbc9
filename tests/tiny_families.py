"""A tiny stock pipeline of each family, built on the spot, with a conditioning and a noise for it.

Every builder returns a pipeline of a few thousand weights, in float32, with real text encoders and a
tokenizer of twenty words where those are small enough to build; the others are driven by embeddings.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

import adjointdpm as adp

VP = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
TOKENS = ["<pad>", "<unk>", "<eos>", "<bos>"]
WORDS = [*TOKENS, "a", "red", "green", "blue", "apple", "pear", "cat", "dog", "on", "in", "of", "and"]


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
        lists = self.name == "z-image"
        given: dict[str, Any] = {
            name: float(tensor) if tensor.ndim == 0 else list(tensor) if lists else tensor
            for name, tensor in cond.items()
        }
        if self.guidance and self.guidance[0] not in given:
            given[self.guidance[0]] = 0.0
        if self.name in ("pixart", "sana"):
            given |= {"negative_prompt": None, "use_resolution_binning": False}
        return given | self.size


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    return pipe


def tokenizer(length: int = 6) -> PreTrainedTokenizerFast:
    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    raw.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 3), ("<eos>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        model_max_length=length,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<eos>",
        bos_token="<bos>",
    )


def clip(width: int = 8, projected: bool = False) -> Any:
    config = CLIPTextConfig(
        vocab_size=len(WORDS),
        hidden_size=width,
        intermediate_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=6,
        projection_dim=width,
        bos_token_id=3,
        eos_token_id=2,
        pad_token_id=0,
    )
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)


def t5(width: int = 8) -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(vocab_size=len(WORDS), d_model=width, d_kv=4, d_ff=12, num_layers=1, num_heads=2)
    )


def kl(channels: int = 4, **config: Any) -> Any:
    return diffusers.AutoencoderKL(
        block_out_channels=(4, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=channels,
        norm_num_groups=2,
        sample_size=8,
        **{"scaling_factor": 0.5, **config},
    )


def unet2d(**config: Any) -> Any:
    return diffusers.UNet2DConditionModel(
        sample_size=4,
        in_channels=4,
        out_channels=4,
        block_out_channels=(4, 8),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
        norm_num_groups=2,
        **config,
    )


def ddim() -> Any:
    return diffusers.DDIMScheduler(**VP, clip_sample=False, set_alpha_to_one=False, steps_offset=1)


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
        unet=unet2d(cross_attention_dim=8),
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
    vae = diffusers.AutoencoderDC(
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
        upsample_block_type="interpolate",
        downsample_block_type="stride_conv",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        scaling_factor=0.41407,
    )
    transformer = diffusers.SanaTransformer2DModel(
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=4,
        num_cross_attention_heads=2,
        cross_attention_head_dim=4,
        cross_attention_dim=8,
        caption_channels=8,
        sample_size=4,
    )
    scheduler = diffusers.DPMSolverMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0
    )
    return diffusers.SanaPipeline(
        tokenizer=None, text_encoder=None, vae=vae, transformer=transformer, scheduler=scheduler
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
        text_encoder=None,
        tokenizer=None,
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
    return diffusers.QwenImagePipeline(
        scheduler=flux_scheduler(), vae=vae, text_encoder=None, tokenizer=None, transformer=transformer
    )


def unconditional(kind: Any, scheduler: Any) -> Callable[[], Any]:
    @seeded
    def make() -> Any:
        unet = diffusers.UNet2DModel(
            sample_size=8,
            block_out_channels=(4, 8),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=4,
            norm_num_groups=2,
        )
        return kind(unet=unet, scheduler=scheduler())

    return make


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
    Family("sana", sana, MASKED, (4, 16, 16), size={"height": 32, "width": 32}),
    Family("z-image", z_image, {"prompt_embeds": (5, 8)}, SQUARE, size=SMALL),
    Family(
        "qwen",
        qwen,
        {"prompt_embeds": (5, 8), "prompt_embeds_mask": (5,)},
        (4, 16),
        ("true_cfg_scale", 3.0),
        SMALL,
    ),
    Family(
        "ddpm", unconditional(diffusers.DDPMPipeline, diffusers.DDPMScheduler), {}, (3, 8, 8), guidance=None
    ),
    Family("ddim", unconditional(diffusers.DDIMPipeline, ddim), {}, (3, 8, 8), guidance=None),
]
