"""From a picture to a network's input, in tensors only, so that the gradient comes back.

u = (resize(x) - mean) / std       bilinear or bicubic, antialiased; x in [0, 1] and never clamped
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from torch.nn import functional

from .._types import InputError

__all__ = ["CLIP", "IMAGENET", "Preprocess"]

Channels = tuple[float | int, float | int, float | int]


@dataclass(frozen=True)
class Preprocess:
    """Resizing and normalisation, as part of a metric.

    The whole picture is resized to a square; nothing is cropped, so that every pixel counts.

    Args:
        size: side of the square; None takes pictures as they come.
        mean, std: per channel.
        mode: of the resizing.
    Raises:
        InputError: a side below 1, or a standard deviation of 0.
    """

    size: int | None = None
    mean: Channels = (0.0, 0.0, 0.0)
    std: Channels = (1.0, 1.0, 1.0)
    mode: Literal["bilinear", "bicubic"] = "bicubic"

    def __post_init__(self) -> None:
        if (self.size is not None and self.size < 1) or not all(s > 0 for s in self.std):
            raise InputError(
                f"size must be at least 1 and std positive, but are {self.size} and {self.std}"
            )

    def __call__(self, images: Tensor) -> Tensor:
        if self.size is not None and images.shape[-2:] != (self.size, self.size):
            images = functional.interpolate(
                images, (self.size, self.size), mode=self.mode, antialias=True, align_corners=False
            )
        mean, std = (images.new_tensor(each).view(1, 3, 1, 1) for each in (self.mean, self.std))
        return (images - mean) / std


# The figures that CLIP's and most ImageNet networks were trained with.
CLIP = Preprocess(224, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
IMAGENET = Preprocess(224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bilinear")
