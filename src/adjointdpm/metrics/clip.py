"""CLIP similarity of images to a text or to an image.

    L(x) = 1 - cos(f(x), g)        f the image tower, g the embedding of the text or image; in [0, 2]

Radford et al., 2021, arXiv 2103.00020.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .._types import InputError
from ..files.pretrained import load_pretrained, quiet, refusing
from .base import Images, Values, Weighable
from .image_processor import has_processor, one_line, probe_image, processing_of, read_processor
from .preprocess import CLIP, Preprocess

__all__ = ["ClipDistance", "load_clip"]


@dataclass(frozen=True, eq=False)
class ClipDistance(Weighable):
    """1 - cosine similarity in CLIP's space.

    A single network is easily fooled by its own gradient: judge the result with another one.

    Args:
        model: a transformers CLIPModel, its weights frozen.
        goal: (width,) or (batch, width), the embedding to reach; see `of_text`, `of_image`.
        preprocess: images in [0, 1] to what the image tower takes.
    """

    model: Any
    goal: Tensor
    preprocess: Callable[[Tensor], Tensor] = CLIP

    def __call__(self, images: Images) -> Values:
        found = _pixels(self.model, self.preprocess, images)
        return 1 - functional.cosine_similarity(found, self.goal.to(found).expand_as(found), dim=1)

    @classmethod
    def of_text(
        cls, model: Any, tokenizer: Any, text: str, preprocess: Callable[[Tensor], Tensor] = CLIP
    ) -> "ClipDistance":
        """To a text.

        Raises:
            InputError: the text is empty, or of more tokens than the model takes.
        """
        if not text.strip():
            raise InputError("CLIP needs a text to compare with, but it is empty")
        device = next(model.parameters()).device
        with quiet():  # of what the next lines say
            tokens = tokenizer([text], return_tensors="pt").to(device)
        most, length = model.config.text_config.max_position_embeddings, tokens["input_ids"].shape[1]
        if length > most:
            raise InputError(f"CLIP takes {most} tokens, but the text {text!r} has {length}; shorten it")
        with torch.no_grad():
            goal = model.text_projection(model.text_model(**tokens).pooler_output)
        return cls(model, goal[0], preprocess)

    @classmethod
    def of_image(
        cls, model: Any, image: Tensor, preprocess: Callable[[Tensor], Tensor] = CLIP
    ) -> "ClipDistance":
        """To an image (3, height, width) in [0, 1]."""
        with torch.no_grad():
            goal = _pixels(model, preprocess, image[None])
        return cls(model, goal[0], preprocess)


def load_clip(name: str) -> tuple[Any, Any, Callable[[Tensor], Tensor]]:
    """A CLIP model by folder or name, frozen; its tokenizer; and its own preprocessing.

    The preprocessing is that of its image processor (`metrics.image_processor`), which crops images that are not
    square; where it has none, CLIP's, at the size of its image tower.

    Raises:
        InputError: it cannot be loaded, weights are missing or left over, its preprocessing has no differentiable form
            here, or it fails on an image.
    """
    with quiet():
        from transformers import AutoTokenizer, CLIPModel

        model: Any = load_pretrained(CLIPModel, name)
        with refusing("tokenizer", name):
            tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        model = model.float().requires_grad_(False).eval()
        vision: Any = model.config.vision_config
        preprocess: Callable[[Tensor], Tensor] = Preprocess(int(vision.image_size), CLIP.mean, CLIP.std)
        if has_processor(name):
            preprocess = processing_of(read_processor(name), name, channels=3)
        try:
            _pixels(model, preprocess, probe_image(3, 64, 64))
        except Exception as error:
            raise InputError(f"the CLIP model {name!r} fails on an image: {one_line(error)}") from error
    return model, tokenizer, preprocess


def _pixels(model: Any, preprocess: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    pooled = model.vision_model(pixel_values=preprocess(images).to(model.dtype)).pooler_output
    return model.visual_projection(pooled).to(images.dtype)
