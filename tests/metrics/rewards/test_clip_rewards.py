"""Rewards of CLIP are its model's own numbers, through the pixels of transformers' own image processor."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.autograd import gradcheck
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

import adjointdpm as adp
from adjointdpm.metrics import CLIP, Preprocess
from adjointdpm.metrics.clip import image_features
from adjointdpm.metrics.image_processor import probe_image, processing_of
from adjointdpm.metrics.rewards import ClipScore, HPSv2, PickScore
from adjointdpm.metrics.rewards.clip_rewards import padded_square
from tests.tiny.metrics import random_images, tiny_clip

PROMPTS = ["one two", "three"]


class Words:
    """A tokenizer of few words: 0 begins, 2 ends."""

    def __call__(self, texts, return_tensors):
        (text,) = texts
        ids = [0, *(3 + sum(map(ord, word)) % 17 for word in text.split()), 2]
        found = {
            "input_ids": torch.tensor([ids]),
            "attention_mask": torch.ones(1, len(ids), dtype=torch.long),
        }
        return Tokens(found)


class Tokens(dict):
    def to(self, device):
        return Tokens({name: each.to(device) for name, each in self.items()})


def logits(model, pixels, prompts):
    """The model's own logits of each image with its prompt."""
    rows = []
    for image, prompt in zip(pixels, prompts, strict=True):
        rows.append(model(pixel_values=image[None], **Words()([prompt], "pt")).logits_per_image[0, 0])
    return torch.stack(rows)


def test_scores_are_the_models_own_row_by_row_and_differentiable():
    model, process = tiny_clip(), Preprocess(16, (0.4, 0.5, 0.6), (0.2, 0.3, 0.25))
    x = random_images(side=12)
    own = logits(model, process(x), PROMPTS)
    pick, clip, hps = (kind(model, Words(), process) for kind in (PickScore, ClipScore, HPSv2))
    assert torch.allclose(pick.scores(x, PROMPTS), own, rtol=1e-10)
    cosine = own / model.logit_scale.exp()
    assert torch.allclose(clip.scores(x, PROMPTS), 100 * cosine, rtol=1e-10)
    assert torch.allclose(hps.scores(x, PROMPTS), cosine, rtol=1e-10)
    assert gradcheck(pick.for_prompts(PROMPTS), x.clone().requires_grad_(), fast_mode=True)
    assert set(pick.known) == set(PROMPTS)


def test_a_prompt_that_is_empty_or_too_long_is_refused():
    clip = ClipScore(tiny_clip(), Words(), Preprocess(16))
    for prompt, message in (("", "it is empty"), ("a b c d e f", r"CLIP takes 6 tokens, but .* has 8")):
        with pytest.raises(adp.InputError, match=message):
            clip.scores(random_images(1), [prompt])


def published(dtype=torch.float32, layers=3):
    """The widths of CLIP ViT-B/32, random weights, fewer layers."""
    torch.manual_seed(0)
    text = {"num_hidden_layers": 1, "vocab_size": 64, "bos_token_id": 0, "eos_token_id": 2}
    config = CLIPConfig(text_config=text, vision_config={"num_hidden_layers": layers})
    return CLIPModel(config).to(dtype).eval().requires_grad_(False)


@pytest.mark.parametrize("shape", [(64, 64), (300, 420), (512, 512)])
def test_the_score_is_that_of_transformers_own_image_processor_to_two_in_a_thousand(shape):
    """The processor rounds what it resizes to 8 bits, and the reward does not."""
    model, processor = published(), CLIPImageProcessor()
    image = probe_image(3, *shape)
    pillow = Image.fromarray((image[0] * 255).round().byte().permute(1, 2, 0).numpy())
    own = logits(model, processor(pillow, return_tensors="pt")["pixel_values"], PROMPTS[:1])
    reward = PickScore(model, Words(), processing_of(processor, "clip", 3))
    assert reward.scores(image, PROMPTS[:1]).item() == pytest.approx(own.item(), rel=2e-3)


@pytest.mark.parametrize("shape", [(64, 64), (300, 420), (500, 200)])
def test_hpsv2s_pixels_are_those_of_pillow_resized_whole_and_padded(shape):
    image = probe_image(3, *shape)
    pillow = Image.fromarray((image[0] * 255).round().byte().permute(1, 2, 0).numpy())
    scale = 224 / max(shape)
    high, wide = (round(side * scale) for side in shape)
    canvas = Image.new("RGB", (224, 224))
    canvas.paste(
        pillow.resize((wide, high), Image.Resampling.BICUBIC), ((224 - wide) // 2, (224 - high) // 2)
    )
    own = torch.from_numpy(np.array(canvas)).permute(2, 0, 1)[None] / 255
    mean, std = torch.tensor(CLIPImageProcessor().image_mean), torch.tensor(CLIPImageProcessor().image_std)
    own = (own - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)
    found = padded_square(224)(image)
    assert float((found - own).norm() / own.norm()) < 0.01
    model = published()
    score = HPSv2(model, Words()).scores(image, PROMPTS[:1])
    cosine = logits(model, own, PROMPTS[:1]) / model.logit_scale.exp()
    assert score.item() == pytest.approx(cosine.item(), rel=2e-3)


def test_a_half_precision_tower_has_a_float32_head():
    """The embedding is the float32 product of the tower's output; in bfloat16 it would have steps of 0.4 %."""
    x, model = random_images(3, 64, dtype=torch.float32), published(torch.bfloat16)
    pooled = model.vision_model(pixel_values=CLIP(x).bfloat16()).pooler_output
    expected = pooled.float() @ model.visual_projection.weight.float().T
    assert torch.allclose(image_features(model, CLIP, x), expected, rtol=1e-5, atol=1e-6)
    assert ClipScore(model, Words()).scores(x, PROMPTS[:1] * 3).dtype == torch.float32
