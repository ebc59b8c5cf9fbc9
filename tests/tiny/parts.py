"""Networks, text encoders and schedulers of a few thousand weights: the parts of every tiny pipeline here."""

from typing import Any

import diffusers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

VP = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
TOKENS = ["<pad>", "<unk>", "<eos>", "<bos>"]
WORDS = [*TOKENS, "a", "red", "green", "blue", "apple", "pear", "cat", "dog", "on", "in", "of", "and"]


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
        chat_template="{% for message in messages %}{{ message.content }} {% endfor %}",
    )


def clip(width: int = 8, projected: bool = False, **config: Any) -> Any:
    defaults = {
        "vocab_size": len(WORDS),
        "hidden_size": width,
        "intermediate_size": 12,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 6,
        "projection_dim": width,
        "bos_token_id": 3,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    kind = CLIPTextModelWithProjection if projected else CLIPTextModel
    return kind(CLIPTextConfig(**{**defaults, **config}))


def t5(width: int = 8) -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(vocab_size=len(WORDS), d_model=width, d_kv=4, d_ff=12, num_layers=1, num_heads=2)
    )


def decoder_only(kind: Any, config: Any, width: int = 8) -> Any:
    """A language model, of which pipelines read the hidden states."""
    return kind(
        config(
            vocab_size=len(WORDS),
            hidden_size=width,
            intermediate_size=12,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=4,
            pad_token_id=0,
            bos_token_id=3,
            eos_token_id=2,
        )
    )


def gemma2() -> Gemma2Model:
    return decoder_only(Gemma2Model, Gemma2Config)


def qwen3() -> Any:
    from transformers import Qwen3Config, Qwen3Model  # of transformers 4.51

    return decoder_only(Qwen3Model, Qwen3Config)


def kl(channels: int = 4, **config: Any) -> Any:
    defaults = {"block_out_channels": (4, 8), "norm_num_groups": 2, "sample_size": 8, "scaling_factor": 0.5}
    return diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=channels,
        **{**defaults, **config},
    )


def dc() -> Any:
    """Sana's autoencoder."""
    return diffusers.AutoencoderDC(
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


def unet2d(**config: Any) -> Any:
    """A UNet that is told a prompt."""
    defaults = {
        "sample_size": 4,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (4, 8),
        "layers_per_block": 1,
        "cross_attention_dim": 8,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": 4,
        "norm_num_groups": 2,
    }
    return diffusers.UNet2DConditionModel(**{**defaults, **config})


def unprompted(**config: Any) -> Any:
    """A UNet that is told nothing but the time."""
    defaults = {
        "sample_size": 8,
        "block_out_channels": (4, 8),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": 4,
        "norm_num_groups": 2,
    }
    return diffusers.UNet2DModel(**{**defaults, **config})


def sana_transformer(layers: int = 1, head: int = 4, size: int = 4) -> Any:
    return diffusers.SanaTransformer2DModel(
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=layers,
        num_attention_heads=2,
        attention_head_dim=head,
        num_cross_attention_heads=2,
        cross_attention_head_dim=head,
        cross_attention_dim=2 * head,
        caption_channels=8,
        sample_size=size,
    )


def ddim() -> Any:
    """As Stable Diffusion has it."""
    return diffusers.DDIMScheduler(**VP, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
