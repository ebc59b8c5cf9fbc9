"""Files of a tiny ImageReward under the published names, with random weights and a vocabulary of few words."""

import torch
from safetensors.torch import save_file

from adjointdpm.metrics.rewards.image_reward import published_config

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "blue", "apple", "cat", ",", "##s"]


def few_words(config):
    """A configuration with the vocabulary `WORDS`."""
    text = config.text_config
    text.vocab_size, text.bos_token_id, text.sep_token_id = len(WORDS) + 2, len(WORDS), WORDS.index("[SEP]")
    return config


def tiny_config():
    """The published configuration with smaller sizes, so that epsilons and activations are the published ones."""
    config = few_words(published_config())
    for name, value in (
        ("hidden_size", 32),
        ("intermediate_size", 48),
        ("num_hidden_layers", 2),
        ("num_attention_heads", 4),
        ("image_size", 32),
    ):
        setattr(config.vision_config, name, value)
    for name, value in (
        ("hidden_size", 24),
        ("encoder_hidden_size", 32),
        ("intermediate_size", 40),
        ("num_hidden_layers", 2),
        ("num_attention_heads", 3),
        ("max_position_embeddings", 36),
    ):
        setattr(config.text_config, name, value)
    return config


def layout(config):
    """Names and shapes of the published file, from the published modules: BLIP's vit.py and med.py, and the head."""
    v, t = config.vision_config, config.text_config
    wide, width, patches = v.hidden_size, t.hidden_size, (v.image_size // v.patch_size) ** 2
    found = {}

    def weighted(name, *shape):
        found[f"{name}.weight"], found[f"{name}.bias"] = shape, shape[:1]

    found["blip.visual_encoder.cls_token"] = (1, 1, wide)
    found["blip.visual_encoder.pos_embed"] = (1, patches + 1, wide)
    weighted("blip.visual_encoder.patch_embed.proj", wide, 3, v.patch_size, v.patch_size)
    for n in range(v.num_hidden_layers):
        block = f"blip.visual_encoder.blocks.{n}"
        weighted(f"{block}.norm1", wide)
        weighted(f"{block}.attn.qkv", 3 * wide, wide)
        weighted(f"{block}.attn.proj", wide, wide)
        weighted(f"{block}.norm2", wide)
        weighted(f"{block}.mlp.fc1", v.intermediate_size, wide)
        weighted(f"{block}.mlp.fc2", wide, v.intermediate_size)
    weighted("blip.visual_encoder.norm", wide)
    text = "blip.text_encoder"
    found[f"{text}.embeddings.word_embeddings.weight"] = (t.vocab_size, width)
    found[f"{text}.embeddings.position_embeddings.weight"] = (t.max_position_embeddings, width)
    weighted(f"{text}.embeddings.LayerNorm", width)
    for n in range(t.num_hidden_layers):
        layer = f"{text}.encoder.layer.{n}"
        for kind, read in (("attention", width), ("crossattention", wide)):
            weighted(f"{layer}.{kind}.self.query", width, width)
            weighted(f"{layer}.{kind}.self.key", width, read)
            weighted(f"{layer}.{kind}.self.value", width, read)
            weighted(f"{layer}.{kind}.output.dense", width, width)
            weighted(f"{layer}.{kind}.output.LayerNorm", width)
        weighted(f"{layer}.intermediate.dense", t.intermediate_size, width)
        weighted(f"{layer}.output.dense", width, t.intermediate_size)
        weighted(f"{layer}.output.LayerNorm", width)
    for number, shape in (
        (0, (1024, width)),
        (2, (128, 1024)),
        (4, (64, 128)),
        (6, (16, 64)),
        (7, (1, 16)),
    ):
        weighted(f"mlp.layers.{number}", *shape)
    return found


def unused(config):
    """What the published file holds and no score depends on."""
    v, t = config.vision_config, config.text_config
    return {
        "blip.vision_proj.weight": torch.ones(256, v.hidden_size),
        "blip.vision_proj.bias": torch.ones(256),
        "blip.text_proj.weight": torch.ones(256, t.hidden_size),
        "blip.text_proj.bias": torch.ones(256),
        "blip.text_encoder.embeddings.position_ids": torch.arange(t.max_position_embeddings)[None],
    }


def random_tensors(config):
    """Random weights, of a size at which each of them has its share in the score."""
    draw = torch.Generator().manual_seed(0)
    tensors = {}
    for name, shape in layout(config).items():
        scale = shape[-1] ** -0.5 if len(shape) == 2 else 0.2
        norm = "norm" in name.lower() and name.endswith("weight")
        tensors[name] = scale * torch.randn(shape, generator=draw) + (1.0 if norm else 0.0)
    return tensors


def save_folder(folder, tensors=None, config=None):
    """Write the weights, the vocabulary and the sizes into a folder, and return the weights."""
    config = tiny_config() if config is None else config
    tensors = random_tensors(config) if tensors is None else tensors
    save_file(tensors, folder / "model.safetensors")
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    config.save_pretrained(folder)
    return tensors
