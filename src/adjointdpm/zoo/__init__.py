"""The bundled models: a small text-to-image model of emoji-like images, and classifiers and rewards of them.

    emoji                                       the text-to-image model
    emoji/resnet, emoji/hgnet, emoji/poolformer, emoji/bit      classifiers of its 234 concepts, to be audited
    emoji/clip, emoji/preference                                rewards: what the caption says, what is well made
    emoji/judge, emoji/judge/colour, emoji/judge/style,
    emoji/judge/clip, emoji/judge/preference                    for evaluation only: never a target, never in a loss

All are ordinary folders of diffusers and transformers, trained by the scripts under `training/`. Every file
is checked against the hash in its folder's MANIFEST.json before it is read.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._types import InputError
from ..adjoints import Adjoint
from ..files.pretrained import load_pretrained_pipeline
from ..flow.grids import Grid, uniform
from ..metrics import clip
from ..metrics.image_classifier import Classifier, PlainClassifier, read_classifier
from ..metrics.rewards import Preference, read_preference
from ..pipelines.pipeline_model import PipelineModel
from ..samplers.flow_sampler import FlowSampler
from ..solvers import Solver

__all__ = [
    "Classifier",
    "PlainClassifier",
    "bundled",
    "folder",
    "load_bundled",
    "load_classifier",
    "load_clip",
    "load_preference",
]


def bundled(name: str) -> bool:
    """Return whether a name is that of a bundled model.

    Args:
        name: a name such as "emoji" or "emoji/resnet".

    Returns:
        whether the package contains such a model; its files are not checked.

    Examples:
        >>> import adjointdpm as adp
        >>> adp.zoo.bundled("emoji/judge/style"), adp.zoo.bundled("emoji/vgg")
        (True, False)
    """
    return (Path(__file__).parent / name.replace("/", "-") / "MANIFEST.json").is_file()


def folder(name: str) -> Path:
    """Return the folder of a bundled model, after its files have been checked.

    diffusers and transformers read it like any other folder of theirs.

    Args:
        name: a name such as "emoji" or "emoji/resnet".

    Returns:
        the folder.

    Raises:
        InputError: there is no such model, or a file is missing or is not the one that was shipped.

    Examples:
        >>> import adjointdpm as adp
        >>> (adp.zoo.folder("emoji") / "model_index.json").is_file()
        True
    """
    here = Path(__file__).parent
    path = here / name.replace("/", "-")
    known = sorted(each.parent.name.replace("-", "/") for each in here.glob("*/MANIFEST.json"))
    if name not in known:
        raise InputError(f"no bundled model is called {name!r}; there are {', '.join(known) or 'none'}")
    return verified(path)


def verified(path: Path) -> Path:
    """Check the files of a folder against the SHA-256 sums in its MANIFEST.json.

    Args:
        path: the folder.

    Returns:
        the folder.

    Raises:
        InputError: a file is missing, or has another sum.
    """
    manifest: dict[str, str] = json.loads((path / "MANIFEST.json").read_text())
    for file, expected in manifest.items():
        if not (path / file).is_file():
            raise InputError(f"{path / file} is missing; install adjointdpm again")
        if hashlib.sha256((path / file).read_bytes()).hexdigest() != expected:
            raise InputError(f"{path / file} is damaged (its hash is wrong); install adjointdpm again")
    return path


def load_bundled(
    name: str = "emoji",
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    split_guidance: bool = False,
    height: int | None = None,
    width: int | None = None,
    solver: Solver | None = None,
    steps: int = 25,
    grid: Grid | Tensor = uniform,
    guidance_scale: float = 5.0,
    negative_prompt: str = "",
    adjoint: Adjoint | None = None,
) -> FlowSampler:
    """Load a bundled text-to-image model as a sampler, its weights frozen.

    Use it to learn and to test: it makes 64 x 64 images, and a gradient through 25 steps takes seconds on a CPU. For
    gradients of the weights call `sampler.model.denoiser.requires_grad_()`. The same folder is a stock pipeline:
    `StableDiffusionPipeline.from_pretrained(adjointdpm.zoo.folder("emoji"))`.

    Args:
        name: the model's name; "emoji" is the only one. It takes prompts such as "a red apple on a blue background"
            or "a pixel art cat"; `emoji.json` in its folder lists concepts, colours and styles.
        dtype: the dtype of the networks; the files hold float16.
        device: the device of the networks.
        split_guidance: whether guidance takes two network calls a step, instead of one with both halves as one batch;
            it halves the graph's memory.
        height, width: of the image, in pixels; 64 by default, the size that the model was trained on.
        solver: as in `FlowSampler`.
        steps: number of steps, at least 1.
        grid: the time grid, as in `FlowSampler`.
        guidance_scale: the initial guidance scale; 1 is no guidance.
        negative_prompt: as in `FlowSampler`.
        adjoint: as in `FlowSampler`.

    Returns:
        the sampler.

    Raises:
        InputError: the name is unknown, a file is damaged, or a setting is out of range.

    Examples:
        >>> import torch
        >>> import adjointdpm as adp
        >>> sampler = adp.load_bundled("emoji", steps=2)
        >>> with torch.no_grad():
        ...     images = sampler(sampler.noise(1, seed=0), sampler.encode("a red apple"))
        >>> images.shape
        torch.Size([1, 3, 64, 64])
    """
    path = folder(name)
    pipe = load_pretrained_pipeline(path, dtype)
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        part.requires_grad_(False).eval()
    about = json.loads((path / "emoji.json").read_text())
    phrases = [*about["concepts"], *about["colours"], *about["styles"][1:], "a an on background"]
    words = frozenset(" ".join(phrases).split())
    model = PipelineModel(
        pipe.to(device),
        split_guidance,
        call_unet_directly=True,
        vocabulary=words,
        height=height,
        width=width,
    )
    return FlowSampler(
        model,
        solver=solver,
        steps=steps,
        grid=grid,
        guidance_scale=guidance_scale,
        negative_prompt=negative_prompt,
        adjoint=adjoint,
    )


def load_classifier(name: str = "emoji/resnet", *, device: str | torch.device = "cpu") -> Classifier:
    """Load a bundled image classifier, or any classifier of transformers, its weights frozen.

    Args:
        name: a bundled classifier such as "emoji/resnet" (the head of this module lists them), a folder of
            transformers, or a model's name on a hub.
        device: the device of the weights.

    Returns:
        the classifier, in evaluation mode and float32; its preprocessing is a part of it.

    Raises:
        InputError: a bundled file is missing or damaged, there is no such classifier, weights are missing or not
            expected, or its preprocessing is not among the operations known here (`metrics.image_processor`).

    Examples:
        >>> import torch
        >>> import adjointdpm as adp
        >>> judge = adp.load_classifier("emoji/judge/colour")
        >>> judge(torch.zeros(1, 3, 64, 64)).shape[1] == len(judge.labels)
        True
    """
    return read_classifier(str(folder(name)) if bundled(name) else name, device)


def load_clip(
    name: str = "emoji/clip", *, processor: str | None = None, dtype: torch.dtype = torch.float32
) -> tuple[Any, Any, Callable[[Tensor], Tensor]]:
    """Load a bundled CLIP, or any CLIP of transformers, as `metrics.load_clip` does.

    The bundled ones know the captions of the bundled model and nothing else: "a red apple on a blue background", "a
    pixel art cat". Optimize `ClipScore` with "emoji/clip", and judge the result with "emoji/judge/clip".

    Args:
        name: a bundled CLIP, a folder of transformers, or a model's name on a hub.
        processor: where the tokenizer and the image processor come from, if they are not beside the model.
        dtype: of the model's weights; the bundled files hold float16.

    Returns:
        the model, the tokenizer and the preprocessing.

    Raises:
        InputError: a bundled file is missing or damaged, or `metrics.load_clip` cannot load the model.

    Examples:
        >>> import torch
        >>> import adjointdpm as adp
        >>> reward = adp.metrics.rewards.ClipScore(*adp.zoo.load_clip("emoji/clip"))
        >>> reward.scores(torch.zeros(1, 3, 64, 64), ["a black cat"]).shape
        torch.Size([1])
    """
    return clip.load_clip(str(folder(name)) if bundled(name) else name, processor=processor, dtype=dtype)


def load_preference(name: str = "emoji/preference", *, device: str | torch.device = "cpu") -> Preference:
    """Load a bundled preference, or any image classifier of transformers with one label, its weights frozen.

    The bundled one prefers renders that are large, whole, centred, sharp and saturated. Judge what was optimized for it
    with "emoji/judge/preference".

    Args:
        name: a bundled preference, a folder of transformers, or a model's name on a hub.
        device: the device of the weights.

    Returns:
        the reward.

    Raises:
        InputError: a bundled file is missing or damaged, or `metrics.rewards.read_preference` cannot read the model.

    Examples:
        >>> import torch
        >>> import adjointdpm as adp
        >>> adp.zoo.load_preference()(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1])
    """
    return read_preference(str(folder(name)) if bundled(name) else name, device)
