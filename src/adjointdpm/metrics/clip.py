"""CLIP similarity of pictures to a text or to a picture.

    L(x) = 1 - cos(f(x), g)        f the image tower, g the embedding of the text or picture; in [0, 2]

Radford et al., 2021, arXiv 2103.00020.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .._types import InputError
from ..pretrained import load_pretrained, refusing
from .base import Images, Values, Weighable
from .preprocess import CLIP, Preprocess

__all__ = ["ClipDistance", "load_clip"]


@dataclass(frozen=True, eq=False)
class ClipDistance(Weighable):
    """1 - cosine similarity in CLIP's space.

    A single network is easily fooled by its own gradient: judge the result with another one.

    Args:
        model: a transformers CLIPModel, its weights frozen.
        goal: (width,) or (batch, width), the embedding to reach; see `of_text`, `of_picture`.
        preprocess: pictures in [0, 1] to what the image tower takes.
    """

    model: Any
    goal: Tensor
    preprocess: Preprocess = CLIP

    def __call__(self, images: Images) -> Values:
        found = _pixels(self.model, self.preprocess, images)
        return 1 - functional.cosine_similarity(found, self.goal.to(found).expand_as(found), dim=1)

    @classmethod
    def of_text(
        cls, model: Any, tokenizer: Any, text: str, preprocess: Preprocess = CLIP
    ) -> "ClipDistance":
        """To a text.

        Raises:
            InputError: the text is empty.
        """
        if not text.strip():
            raise InputError("CLIP needs a text to compare with, but it is empty")
        device = next(model.parameters()).device
        tokens = tokenizer([text], padding=True, truncation=True, return_tensors="pt").to(device)
        with torch.no_grad():
            goal = model.text_projection(model.text_model(**tokens).pooler_output)
        return cls(model, goal[0], preprocess)

    @classmethod
    def of_picture(cls, model: Any, picture: Tensor, preprocess: Preprocess = CLIP) -> "ClipDistance":
        """To a picture (3, height, width) in [0, 1]."""
        with torch.no_grad():
            goal = _pixels(model, preprocess, picture[None])
        return cls(model, goal[0], preprocess)


def load_clip(name: str) -> tuple[Any, Any, Preprocess]:
    """A CLIP model by folder or name, frozen; its tokenizer; and its own preprocessing.

    Raises:
        InputError: it cannot be loaded.
    """
    from transformers import AutoTokenizer, CLIPModel

    model = load_pretrained(CLIPModel, name)
    with refusing("tokenizer", name):
        tokenizer = AutoTokenizer.from_pretrained(name)
    model.requires_grad_(False).eval()
    vision: Any = model.config.vision_config
    size = int(vision.image_size)
    return model, tokenizer, Preprocess(size, CLIP.mean, CLIP.std)


def _pixels(model: Any, preprocess: Preprocess, images: Tensor) -> Tensor:
    pooled = model.vision_model(pixel_values=preprocess(images).to(model.dtype)).pooler_output
    return model.visual_projection(pooled).to(images.dtype)
