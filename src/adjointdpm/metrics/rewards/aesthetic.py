"""An aesthetic score: a head on CLIP's embedding of the image.

    r(x) = h(f(x) / |f(x)|)        h linear layers, one after the other

The LAION predictors (Schuhmann, 2022) are of this form on CLIP ViT-L/14: h is one layer, or five with dropout between
them, which does nothing in use, and no activation.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from ..._types import InputError
from ..base import AnyImages, Values
from ..clip import image_features
from ..preprocess import CLIP
from .reward import Reward

__all__ = ["Aesthetic", "load_aesthetic"]


@dataclass(frozen=True, eq=False)
class Aesthetic(Reward):
    """How much people would like an image, whatever its prompt is.

        r(x) = h(f(x) / |f(x)|)

    It reads no prompt, so that it is a metric of images alone, too. It is known for being hacked: images become alike
    and painterly. Use it with a threshold, beside a reward that reads the prompt.

    Args:
        model: a transformers CLIPModel, its weights frozen.
        head: from normalized embeddings (batch, width) to (batch, 1), its weights frozen and in float32.
        preprocess: a function from images in [0, 1] to the image tower's input.

    References:
        Schuhmann, 2022, LAION-Aesthetics; Schuhmann et al., 2022, arXiv 2210.08402.
    """

    reads_prompts: ClassVar[bool] = False

    model: Any
    head: nn.Module
    preprocess: Callable[[Tensor], Tensor] = CLIP

    def scores(self, images: AnyImages, prompts: Sequence[str] = ()) -> Values:
        weight = next(self.head.parameters())
        found = image_features(self.model, self.preprocess, images)
        return self.head(functional.normalize(found.to(weight), dim=1))[:, 0].to(images)


def load_aesthetic(path: str | Path) -> nn.Sequential:
    """Load the head of an aesthetic predictor: linear layers without activations, in float32 and frozen.

    Args:
        path: a safetensors file with a weight (and a bias) a layer, whose names' numbers give their order, such as
            layers.0.weight, layers.2.weight, ...; or weight and bias of one layer.

    Returns:
        the head, as `Aesthetic` takes it.

    Raises:
        InputError: the file cannot be read, or holds other tensors than those of linear layers that fit together and
            end in one number.
    """
    if Path(path).suffix in (".pth", ".pt", ".bin", ".ckpt"):
        raise InputError(
            f"{path} is of a format that can run code when it is loaded; write its tensors into a safetensors file "
            "once, with safetensors.torch.save_file(tensors, 'head.safetensors')"
        )
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"the aesthetic head {path} cannot be read: {error}") from error
    weights = {name: each.float() for name, each in tensors.items() if name.endswith("weight")}
    layers: list[nn.Module] = []
    for name in sorted(weights, key=lambda each: [int(number) for number in re.findall(r"\d+", each)]):
        weight, bias = weights[name], tensors.get(f"{name.removesuffix('weight')}bias")
        if weight.ndim != 2 or (layers and layers[-1].out_features != weight.shape[1]):
            raise InputError(
                f"the aesthetic head {path} is no row of linear layers: {name} is {tuple(weight.shape)}"
            )
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
        layer.load_state_dict({"weight": weight} | ({} if bias is None else {"bias": bias}))
        layers.append(layer)
    if not layers or layers[-1].out_features != 1:
        raise InputError(
            f"the aesthetic head {path} must end in one number; it holds {', '.join(tensors) or 'no tensor'}"
        )
    return nn.Sequential(*layers).requires_grad_(False).eval()
