"""The bundled models: a small text-to-image model of emoji-like images, and classifiers of them.

    emoji                                       the text-to-image model
    emoji/resnet, /hgnet, /poolformer, /bit     classifiers of its 234 concepts, to be audited
    emoji/judge, /judge/colour, /judge/style    for measuring only: never a target, never in a loss

All are ordinary folders of diffusers and transformers, trained by the scripts under `training/`. Every file
is checked against the hash in its folder's MANIFEST.json before it is read.
"""

import hashlib
import json
from pathlib import Path

import torch
from torch import Tensor

from .._types import InputError
from ..adjoints import Adjoint
from ..files.pretrained import load_pretrained_pipeline
from ..flow.grids import Grid, uniform
from ..metrics.image_classifier import Classifier, PlainClassifier, read_classifier
from ..pipelines.pipeline_model import PipelineModel
from ..samplers.flow_sampler import FlowSampler
from ..solvers import Solver

__all__ = ["Classifier", "PlainClassifier", "bundled", "folder", "load_bundled", "load_classifier"]


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


def load_bundled(
    name: str = "emoji",
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    split_guidance: bool = False,
    solver: Solver | None = None,
    steps: int = 25,
    grid: Grid | Tensor = uniform,
    guidance_scale: float = 5.0,
    adjoint: Adjoint | None = None,
) -> FlowSampler:
    """A bundled text-to-image model as a sampler, its weights frozen.

    For gradients of the weights call `sampler.model.denoiser.requires_grad_()`. The same folder is a
    stock pipeline: `StableDiffusionPipeline.from_pretrained(adjointdpm.zoo.folder("emoji"))`.

    Args:
        name: "emoji": 64 x 64 images; prompts such as "a red apple on a blue background" or "a pixel art
            cat"; concepts, colours and styles are listed in `emoji.json` in its folder.
        dtype, device: of the network.
        split_guidance: two network calls a step instead of one batch of both.
        solver, steps, grid, guidance_scale, adjoint: as in `FlowSampler`.

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
    model = PipelineModel(pipe.to(device), split_guidance, call_unet_directly=True, vocabulary=words)
    return FlowSampler(
        model, solver=solver, steps=steps, grid=grid, guidance_scale=guidance_scale, adjoint=adjoint
    )


def load_classifier(name: str = "emoji/resnet", *, device: str | torch.device = "cpu") -> Classifier:
    """A bundled image classifier, frozen, or any transformers classifier by folder or name.

    Args:
        name: a bundled classifier such as "emoji/resnet" (the head of this module lists them), a folder, or
            a model's name.
        device: where it runs.

    Raises:
        InputError: a bundled file is missing or damaged, there is no such classifier, its weights are not all there, or
            its preprocessing is not among the operations known here (`metrics.image_processor`).
    """
    return read_classifier(str(folder(name)) if bundled(name) else name, device)
