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

__all__ = ["ClipDistance", "image_features", "load_clip", "text_features"]


@dataclass(frozen=True, eq=False)
class ClipDistance(Weighable):
    """The cosine distance of an image from a text or another image, in CLIP's space.

        1 - cos(f(x), g)          in [0, 2]

    Make it by `of_text` or `of_image`. An optimization can lower the distance in a single network without changing
    what a person sees, so judge the result with another network.

    Args:
        model: a transformers CLIPModel, its weights frozen.
        goal: the embedding to reach, (width,) or (batch, width).
        preprocess: a function from images in [0, 1] to the image tower's input.

    References:
        Radford et al., 2021, arXiv 2103.00020.
    """

    model: Any
    goal: Tensor
    preprocess: Callable[[Tensor], Tensor] = CLIP

    def __call__(self, images: Images) -> Values:
        found = image_features(self.model, self.preprocess, images)
        distance = 1 - functional.cosine_similarity(found, self.goal.to(found).expand_as(found), dim=1)
        return distance.to(images.device)

    @classmethod
    def of_text(
        cls, model: Any, tokenizer: Any, text: str, preprocess: Callable[[Tensor], Tensor] = CLIP
    ) -> "ClipDistance":
        """Make the distance from a text.

        Args:
            model: a transformers CLIPModel.
            tokenizer: its tokenizer.
            text: the text, not empty.
            preprocess: a function from images in [0, 1] to the image tower's input.

        Returns:
            the metric.

        Raises:
            InputError: the text is empty, or has more tokens than the model takes.
        """
        return cls(model, text_features(model, tokenizer, text), preprocess)

    @classmethod
    def of_image(
        cls, model: Any, image: Tensor, preprocess: Callable[[Tensor], Tensor] = CLIP
    ) -> "ClipDistance":
        """Make the distance from an image.

        Args:
            model: a transformers CLIPModel.
            image: (3, height, width), in [0, 1].
            preprocess: a function from images in [0, 1] to the image tower's input.

        Returns:
            the metric.
        """
        with torch.no_grad():
            goal = image_features(model, preprocess, image[None])
        return cls(model, goal[0], preprocess)


def load_clip(
    name: str, *, processor: str | None = None, dtype: torch.dtype = torch.float32
) -> tuple[Any, Any, Callable[[Tensor], Tensor]]:
    """Load a CLIP model with its tokenizer and its preprocessing, the weights frozen.

    The preprocessing repeats the model's image processor (`metrics.image_processor`), which crops images that are not
    square. Where the folder has no image processor, it is CLIP's own at the size of the image tower.

    Args:
        name: a folder of transformers, or a model's name on a hub.
        processor: where the tokenizer and the image processor come from, if they are not beside the model.
        dtype: of the model's weights; its projections are computed in float32 or wider whatever it is.

    Returns:
        the model, the tokenizer and the preprocessing, as `ClipDistance.of_text` takes them.

    Raises:
        InputError: the model cannot be loaded, weights are missing or not expected, its preprocessing has no
            differentiable form here, or it fails on an image.
    """
    with quiet():
        from transformers import AutoTokenizer, CLIPModel

        model: Any = load_pretrained(CLIPModel, name)
        beside = processor or name
        with refusing("tokenizer", beside):
            tokenizer = AutoTokenizer.from_pretrained(beside, trust_remote_code=False)
        model = model.to(dtype).requires_grad_(False).eval()
        vision: Any = model.config.vision_config
        preprocess: Callable[[Tensor], Tensor] = Preprocess(int(vision.image_size), CLIP.mean, CLIP.std)
        if has_processor(beside):
            preprocess = processing_of(read_processor(beside), beside, channels=3)
        try:
            image_features(model, preprocess, probe_image(3, 64, 64))
        except Exception as error:
            raise InputError(f"the CLIP model {name!r} fails on an image: {one_line(error)}") from error
    return model, tokenizer, preprocess


def image_features(model: Any, preprocess: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Return CLIP's embeddings of images, with a graph to them.

    Args:
        model: a transformers CLIPModel, of any dtype.
        preprocess: a function from images in [0, 1] to the image tower's input.
        images: (batch, 3, height, width), in [0, 1], on any device.

    Returns:
        (batch, width), not normalized, on the model's device; projected in float32 or wider, whatever the tower's dtype
            is.
    """
    pixels = preprocess(images.to(next(model.parameters()).device)).to(model.dtype)
    pooled = model.vision_model(pixel_values=pixels).pooler_output
    return _projected(model.visual_projection, pooled).to(images.dtype)


def text_features(model: Any, tokenizer: Any, text: str) -> Tensor:
    """Return CLIP's embedding of a text, without a graph.

    Args:
        model: a transformers CLIPModel, of any dtype.
        tokenizer: its tokenizer.
        text: the text, not empty.

    Returns:
        (width,), not normalized, in float32 or wider.

    Raises:
        InputError: the text is empty, or has more tokens than the model takes.
    """
    if not text.strip():
        raise InputError("CLIP needs a text to compare with, but it is empty")
    with quiet():  # of what the next lines say
        tokens = tokenizer([text], return_tensors="pt").to(next(model.parameters()).device)
    most, length = model.config.text_config.max_position_embeddings, tokens["input_ids"].shape[1]
    if length > most:
        raise InputError(f"CLIP takes {most} tokens, but the text {text!r} has {length}; shorten it")
    with torch.no_grad():
        # Some tokenizers also return the types of the tokens, which CLIP has not.
        read = model.text_model(tokens["input_ids"], attention_mask=tokens["attention_mask"])
        return _projected(model.text_projection, read.pooler_output)[0]


def _projected(projection: Any, pooled: Tensor) -> Tensor:
    wide = torch.promote_types(pooled.dtype, torch.float32)
    return functional.linear(pooled.to(wide), projection.weight.to(wide))
