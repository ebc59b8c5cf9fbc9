"""The bundled models: a small text-to-image model of emoji-like pictures, and classifiers of them.

    emoji                                       the text-to-image model
    emoji/resnet, /hgnet, /poolformer, /bit     classifiers of its 234 concepts, to be audited
    emoji/judge, /judge/colour, /judge/style    for measuring only: never a target, never in a loss

All are ordinary folders of diffusers and transformers, trained by the scripts under `training/`. Every file
is checked against the hash in its folder's MANIFEST.json before it is read.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .._types import InputError
from ..fields import PipelineField
from ..pretrained import load_pretrained, load_pretrained_pipeline, quiet
from ..sampler import FlowSampler

__all__ = ["Classifier", "bundled", "folder", "load", "load_classifier"]


def bundled(name: str) -> bool:
    """Whether a name is that of a bundled model."""
    return (Path(__file__).parent / name.replace("/", "-") / "MANIFEST.json").is_file()


def folder(name: str) -> Path:
    """Where a bundled model lies, its files checked.

    Raises:
        InputError: there is no such model, or a file is missing or is not the one that was shipped.
    """
    here = Path(__file__).parent
    path = here / name.replace("/", "-")
    known = sorted(each.parent.name.replace("-", "/") for each in here.glob("*/MANIFEST.json"))
    if name not in known:
        raise InputError(f"no bundled model is called {name!r}; there are {', '.join(known) or 'none'}")
    return verified(path)


def verified(path: Path) -> Path:
    """The folder, if each file that its MANIFEST.json lists is there and has the hash it says."""
    manifest: dict[str, str] = json.loads((path / "MANIFEST.json").read_text())
    for file, expected in manifest.items():
        if not (path / file).is_file():
            raise InputError(f"{path / file} is missing; install adjointdpm again")
        if hashlib.sha256((path / file).read_bytes()).hexdigest() != expected:
            raise InputError(f"{path / file} is damaged (its hash is wrong); install adjointdpm again")
    return path


def load(
    name: str = "emoji",
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    split_guidance: bool = False,
    **settings: Any,
) -> FlowSampler:
    """A bundled text-to-image model as a sampler, its weights frozen.

    For gradients of the weights call `sampler.field.denoiser.requires_grad_()`. The same folder is a
    stock pipeline: `StableDiffusionPipeline.from_pretrained(adjointdpm.zoo.folder("emoji"))`.

    Args:
        name: "emoji": 64 x 64 pictures; prompts such as "a red apple on a blue background" or "a pixel art
            cat"; concepts, colours and styles are listed in `emoji.json` in its folder.
        dtype, device: of the network.
        split_guidance: two network calls a step instead of one batch of both.
        settings: those of `FlowSampler`: solver, steps, grid, guidance_scale, adjoint.
    Raises:
        InputError: an unknown name, a damaged file, or a bad setting.
    """
    path = folder(name)
    pipe = load_pretrained_pipeline(path, dtype)
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        part.requires_grad_(False).eval()
    about = json.loads((path / "emoji.json").read_text())
    phrases = [*about["concepts"], *about["colours"], *about["styles"][1:], "a an on background"]
    words = frozenset(" ".join(phrases).split())
    field = PipelineField(pipe.to(device), split_guidance, direct=True, vocabulary=words)
    return FlowSampler(field, **settings)


class Classifier(nn.Module):
    """An image classifier as a function of pictures in [0, 1]: normalisation and resizing included.

    Args:
        model: a transformers image classifier.
        mean, std: of its normalisation, per channel.
        size: side of the square it wants; None takes pictures as they come.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: Any, mean: list[float], std: list[float], size: int | None) -> None:
        super().__init__()
        self.model, self.size = model, size
        self.labels = [model.config.id2label[i] for i in range(model.config.num_labels)]
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, images: Float[Tensor, "batch 3 h w"]) -> Float[Tensor, "batch classes"]:
        """Logits of pictures, differentiable; pictures are not clamped."""
        return self.model(self.normalised(images)).logits

    def normalised(self, images: Float[Tensor, "batch 3 h w"]) -> Tensor:
        """Pictures in the size and scale that the network itself takes."""
        if self.size is not None and images.shape[-2:] != (self.size, self.size):
            images = nn.functional.interpolate(
                images, (self.size, self.size), mode="bilinear", antialias=True, align_corners=False
            )
        return (images - self.mean) / self.std

    def index(self, label: str) -> int:
        """The number of a label.

        Raises:
            InputError: the classifier has no such label.
        """
        if label not in self.labels:
            near = [each for each in self.labels if label in each or each in label]
            hint = f"; did you mean {', '.join(near[:5])}?" if near else ""
            raise InputError(f"the classifier has no label {label!r} among its {len(self.labels)}{hint}")
        return self.labels.index(label)


def load_classifier(name: str = "emoji/resnet", *, device: str | torch.device = "cpu") -> Classifier:
    """A bundled image classifier, frozen, or any transformers classifier by folder or name.

    Args:
        name: a bundled classifier such as "emoji/resnet" (the head of this module lists them), a folder, or
            a model's name.
        device: where it runs.
    Raises:
        InputError: a bundled file is missing or damaged, or there is no such classifier.
    """
    path = str(folder(name)) if bundled(name) else name
    with quiet():
        from transformers import AutoImageProcessor, AutoModelForImageClassification

        model = load_pretrained(AutoModelForImageClassification, path).float()
    model.requires_grad_(False).eval()
    settings = _preprocessing(Path(path)) if Path(path).is_dir() else None
    if settings is None:
        settings = AutoImageProcessor.from_pretrained(path).to_dict()
    size = settings.get("size") or {}
    side = size.get("height", size.get("shortest_edge"))
    return Classifier(model, settings["image_mean"], settings["image_std"], side).to(device)


def _preprocessing(path: Path) -> dict[str, Any] | None:
    file = path / "preprocessor_config.json"
    return json.loads(file.read_text()) if file.is_file() else None
