"""Random images, a linear classifier and a tiny CLIP for the tests of metrics."""

import torch
from torch import nn


def random_images(count=2, side=8, seed=0, dtype=torch.float64):
    return torch.rand(count, 3, side, side, dtype=dtype, generator=torch.Generator().manual_seed(seed))


class Logits(nn.Module):
    """Logits that are linear in the mean colour."""

    def forward(self, images):
        weights = torch.tensor([[3.0, -1, 0], [0, 2, 1], [1, 0, -2], [1, 1, 1]], dtype=images.dtype)
        return images.mean((2, 3)) @ weights.T


def bright_for_long_prompts(images, prompts):
    """A reward: the brightness of each image, times the length of its prompt."""
    return images.mean((1, 2, 3)) * images.new_tensor([len(each) for each in prompts])


def identity(images):
    return [images]


def tiny_clip(**more):
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    text = {"vocab_size": 20, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 2, "max_position_embeddings": 6, "bos_token_id": 0, "eos_token_id": 2}
    text |= more
    vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision |= {"image_size": 16, "patch_size": 8}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=5))
    return model.double().eval().requires_grad_(False)
