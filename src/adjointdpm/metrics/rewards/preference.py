"""A preference that was learned from pairs of images, by a network with one number for an image.

    P(a is preferred to b) = 1 / (1 + exp(-(r(a) - r(b))))

Bradley and Terry, 1952, Biometrika 39. Only differences of r have a meaning: where it is 1, a is preferred in 73 %.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..._types import InputError
from ...files.pretrained import load_pretrained, quiet
from ..base import AnyImages, Values
from ..image_processor import one_line, probe_image, processing_of, read_processor
from .reward import Reward

__all__ = ["Preference", "read_preference"]


@dataclass(frozen=True, eq=False)
class Preference(Reward):
    """How much an image would be preferred to others, whatever its prompt is.

        r(x) = network(preprocess(x))

    Use it for qualities that a text does not name. It reads no prompt, so that it is a metric of images alone, too; use
    it beside a metric that keeps what the image shows, such as `ClipScore`. `zoo.load_preference` loads a bundled one.

    Args:
        model: a transformers image classifier with one label, its weights frozen.
        preprocess: a function from images in [0, 1] to the network's input.

    References:
        Bradley and Terry, 1952, Biometrika 39, 324-345.
    """

    reads_prompts: ClassVar[bool] = False

    model: Any
    preprocess: Callable[[Tensor], Tensor]

    def scores(self, images: AnyImages, prompts: Sequence[str] = ()) -> Values:
        weight = next(self.model.parameters())
        found = self.model(self.preprocess(images.to(weight.device)).to(weight.dtype)).logits
        return found[:, 0].to(images)


def read_preference(path: str, device: str | torch.device = "cpu") -> Preference:
    """Read a preference, its weights frozen and in float32, with its image processor's operations.

    Args:
        path: a folder of a transformers image classifier with one label, or its name on a hub.
        device: the device of the weights.

    Returns:
        the preference, its network in evaluation mode.

    Raises:
        InputError: it cannot be read, weights are missing or not expected, its preprocessing has no differentiable form
            here, or it gives an image another number than one.
    """
    with quiet():
        from transformers import AutoModelForImageClassification

        model = load_pretrained(AutoModelForImageClassification, path, trust_remote_code=False)
        preprocess = processing_of(read_processor(path), path, channels=3)
        model = model.float().requires_grad_(False).eval()
        try:
            shape = tuple(model(preprocess(probe_image(3, 64, 64))).logits.shape)
        except Exception as error:
            raise InputError(f"the preference {path!r} fails on an image: {one_line(error)}") from error
    if shape != (1, 1):
        raise InputError(
            f"a preference has one number an image, but {path!r} has {shape[-1]}; pass a classifier with one label, or "
            "load this one with adjointdpm.load_classifier"
        )
    return Preference(model.to(device), preprocess)
