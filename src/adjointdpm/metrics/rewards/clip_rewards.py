"""Rewards that are a cosine in CLIP's space: of an image and its prompt.

    cos(f(x), g(p))       f the image tower and g the text tower, both with their projections

ClipScore   100 cos                Hessel et al., 2021, arXiv 2104.08718; their clamp at 0 has no gradient
PickScore   exp(logit_scale) cos   Kirstain et al., 2023, arXiv 2305.01569
HPSv2       cos                    Wu et al., 2023, arXiv 2306.09341; the image is resized whole, and padded to a square
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..base import AnyImages, Values
from ..clip import image_features, text_features
from ..preprocess import CLIP, CenterCrop, Resize, Standardize, Steps
from .reward import Reward

__all__ = ["ClipScore", "HPSv2", "PickScore"]


@dataclass(frozen=True, eq=False)
class _ClipReward(Reward):
    """The cosine of an image and its prompt; each prompt is encoded once."""

    model: Any
    tokenizer: Any
    preprocess: Callable[[Tensor], Tensor] = CLIP
    known: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)

    def cosines(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return the cosine of each image with its prompt, (batch,), where the images are."""
        for each in dict.fromkeys(prompts):
            if each not in self.known:
                self.known[each] = text_features(self.model, self.tokenizer, each)
        found = image_features(self.model, self.preprocess, images)
        texts = torch.stack([self.known[each] for each in prompts]).to(found)
        return functional.cosine_similarity(found, texts, dim=1).to(images)


class ClipScore(_ClipReward):
    """CLIP's similarity of an image and its prompt.

        r(x, p) = 100 cos(f(x), g(p))

    Use it to ask for what the prompt says. It is blind to much that a person sees, such as counts and positions, and
    easily raised by text in the image.

    Args:
        model: a transformers CLIPModel, its weights frozen.
        tokenizer: its tokenizer.
        preprocess: a function from images in [0, 1] to the image tower's input.

    Raises:
        InputError: when called, if a prompt is empty or has more tokens than the model takes.

    References:
        Hessel et al., 2021, arXiv 2104.08718; the paper's score is 2.5 max(cos, 0).
    """

    def scores(self, images: AnyImages, prompts: Sequence[str]) -> Values:
        return 100 * self.cosines(images, prompts)


class PickScore(_ClipReward):
    """What people preferred in Pick-a-Pic, by a CLIP that was trained on their choices.

        r(x, p) = exp(logit_scale) cos(f(x), g(p))

    Use it for the taste of people for whole images. Load it by `load_clip("yuvalkirstain/PickScore_v1", processor=
    "laion/CLIP-ViT-H-14-laion2B-s32B-b79K")`.

    Args:
        model: a transformers CLIPModel, its weights frozen.
        tokenizer: its tokenizer.
        preprocess: a function from images in [0, 1] to the image tower's input.

    Raises:
        InputError: when called, if a prompt is empty or has more tokens than the model takes.

    References:
        Kirstain et al., 2023, arXiv 2305.01569.
    """

    def scores(self, images: AnyImages, prompts: Sequence[str]) -> Values:
        scale = self.model.logit_scale.to(images).exp()
        return scale * self.cosines(images, prompts)


@dataclass(frozen=True, eq=False)
class HPSv2(_ClipReward):
    """What people preferred in the Human Preference Dataset v2, by a CLIP ViT-H/14 that was trained on their choices.

        r(x, p) = cos(f(x), g(p))

    The image is resized so that its longer side is 224 pixels, and padded with black to a square. HPSv2 and v2.1 are
    published for open_clip and not as safetensors: convert them once to a transformers CLIPModel, and save that.

    Args:
        model: a transformers CLIPModel, its weights frozen.
        tokenizer: its tokenizer.
        preprocess: a function from images in [0, 1] to the image tower's input; the published one by default.

    Raises:
        InputError: when called, if a prompt is empty or has more tokens than the model takes.

    References:
        Wu et al., 2023, arXiv 2306.09341.
    """

    preprocess: Callable[[Tensor], Tensor] = field(default_factory=lambda: padded_square(224))

    def scores(self, images: AnyImages, prompts: Sequence[str]) -> Values:
        return self.cosines(images, prompts)


def padded_square(side: int) -> Steps:
    """Return CLIP's preprocessing of the whole image: its longer side resized, and black on both sides of the other.

    Args:
        side: of the square, in pixels.
    """

    def longest(height: int, width: int) -> tuple[int, int]:
        scale = side / max(height, width)
        return round(height * scale), round(width * scale)

    def square(height: int, width: int) -> tuple[int, int]:
        return side, side

    return Steps((Resize(longest, 3), CenterCrop(square), Standardize(CLIP.mean, CLIP.std)))
