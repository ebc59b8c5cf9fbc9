"""Models by name, as the command line takes them: bundled, a local folder, or a name on a model hub.

solver    dpm++ (2M), euler (= ddim), midpoint, heun, rk4, ab1 ... ab4, coupled:euler (or another one-step solver),
          or pipeline: its own scheduler
adjoint   checkpointed[:keep or budget], backprop, reversible, truncated:last, coarse[:steps], continuous[:steps],
          drtune[:steps], flowbp:sparse[:steps], flowbp:bridge[:steps], flowbp:lagrange, leapalign, directalign
"""

import logging
import math
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from .._types import AdjointDPMError, InputError, in_range
from ..adjoints import (
    Adjoint,
    Backprop,
    Checkpointed,
    CoarseAdjoint,
    Continuous,
    DirectAlign,
    DRTune,
    FlowBP,
    LeapAlign,
    Reversible,
    Surrogate,
    Truncated,
)
from ..adjoints.budget import free_memory
from ..files.diffusers_files import load_lora, load_textual_inversion
from ..files.pretrained import load_pretrained_pipeline
from ..metrics.image_classifier import Classifier
from ..pipelines.text_device import placed
from ..samplers.base import Sampler
from ..samplers.flow_sampler import FlowSampler
from ..samplers.pipeline_sampler import PipelineSampler
from ..solvers import RK4, AdamsBashforth, Coupled, DPMSolverPP, Euler, Heun, Midpoint, Solver
from ..tasks.frames import NOUNS
from ..tasks.sampling import network_of
from ..zoo import bundled, folder, load_bundled, load_classifier

__all__ = [
    "SOLVERS",
    "adjoint_of",
    "check_memory",
    "check_steps",
    "classifier_of",
    "device_of",
    "sampler_of",
    "using",
]

logger = logging.getLogger(__name__)

SOLVERS: dict[str, Callable[[], Solver]] = {
    "dpm++": lambda: DPMSolverPP(order=2),
    "euler": Euler,
    "ddim": Euler,
    "midpoint": Midpoint,
    "heun": Heun,
    "rk4": RK4,
    **{f"ab{n}": (lambda n=n: AdamsBashforth(order=n)) for n in (1, 2, 3, 4)},
    "coupled:euler": lambda: Coupled(Euler()),
    "coupled:midpoint": lambda: Coupled(Midpoint()),
    "coupled:heun": lambda: Coupled(Heun()),
    "coupled:rk4": lambda: Coupled(RK4()),
}
DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@contextmanager
def using(what: str) -> Iterator[None]:
    """Whatever somebody else's files or code raise in this block becomes one line that names them.

    Args:
        what: the subject of the sentence, such as "the model 'folder'".

    Raises:
        AdjointDPMError: as it was raised in the block.
        OutOfMemoryError: as it was raised in the block.
        MemoryError: as it was raised in the block.
        InputError: in place of any error that is not of this library already.
    """
    try:
        yield
    except (AdjointDPMError, torch.OutOfMemoryError, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        says = " ".join(str(error).split())[:300] or "without a reason"
        raise InputError(f"{what} cannot be used: {type(error).__name__}: {says}") from error


def device_of(text: str) -> torch.device:
    """Return a device by name; of several processes that torchrun started, each gets a GPU of its own.

    Args:
        text: auto (CUDA where there is a GPU, then MPS, then the CPU), or a device of torch, such as cpu or cuda:1.
            In a process with a LOCAL_RANK, cuda without a number is cuda:LOCAL_RANK.

    Raises:
        InputError: there is no such device here, or nothing can be computed on it.
    """
    if text == "auto":
        text = (
            "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        )
    if text == "cuda":
        text = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    try:
        device = torch.device(text)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError, ImportError, ValueError) as error:
        gpus = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
        here = ["cpu", *gpus, *(["mps"] if torch.backends.mps.is_available() else [])]
        says = str(error).strip().partition("\n")[0][:120]
        raise InputError(
            f"the device {text!r} cannot be used here ({says}); there are {', '.join(here)}, and auto chooses"
        ) from error
    return device


def classifier_of(name: str, device: torch.device, image_shape: tuple[int, ...]) -> Classifier:
    """Return a classifier by name, tried once on a gray image, so that a broken one fails before the work.

    Raises:
        InputError: it cannot be loaded, or cannot classify images of this shape.
    """
    _check_source("classifier", name)
    with using(f"the classifier {name!r}"):
        classifier = load_classifier(name, device=device)
        with torch.no_grad():
            logits = classifier(torch.full((1, *image_shape), 0.5, device=device))
    if logits.ndim != 2 or logits.shape[1] < 2 or not bool(logits.isfinite().all()):
        raise InputError(
            f"the classifier {name!r} must put out finite logits (batch, classes) of two classes or more, but put out "
            f"{tuple(logits.shape)}{'' if logits.isfinite().all() else ' with NaN or infinity'}"
        )
    return classifier


def _check_source(what: str, name: str) -> None:
    """Refuse what is neither a folder nor can be a name on a hub, before anybody opens or asks for it.

    Raises:
        InputError: it is neither.
    """
    path = Path(name)
    if name.strip() and (bundled(name) or path.is_dir()):
        return
    if path.exists() or re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) is None or ".." in name:
        raise InputError(
            f"the {what} {name!r} is neither a bundled one nor a folder that is there nor a name on a hub, such as "
            "owner/model"
        )


def check_memory(sampler: Sampler, images: int, batch: int) -> None:
    """Refuse what cannot fit into memory, whatever the network takes.

    Counted are the noise, the latents and four images in float32 of everything that is made, the stored states of one
    batch, and one feature map of the decoder at the size of its images: a lower bound, without any graph.

    Args:
        sampler: makes the images.
        images: how many are held at once, at the end.
        batch: how many go through the sampler together.

    Raises:
        InputError: it is more than is free on the device (or on the machine).
    """
    noise = sampler.noise(1)
    one, image = noise[0].numel(), math.prod(sampler.output_shape)
    steps = getattr(sampler, "steps", 1)
    needed = 4 * (images * (2 * one + 4 * image) + min(batch, images) * steps * one)
    vae: Any = getattr(sampler.pipe, "vae", None)
    widths = getattr(getattr(vae, "config", None), "block_out_channels", ())
    if widths and sampler.medium != "audio":
        _, height, width = sampler.image_shape
        needed += vae.dtype.itemsize * min(batch, images) * min(widths) * height * width
    free = free_memory(noise.device)
    if free is not None and needed > free:
        raise InputError(
            f"{_counted(images, sampler)} of {' x '.join(map(str, sampler.output_shape))} in {steps} "
            f"steps need at least {needed / 2**30:.3g} GiB of memory, but {free / 2**30:.3g} GiB are free; make fewer "
            "at a time, or smaller ones"
        )


def _counted(number: int, sampler: Sampler) -> str:
    noun = NOUNS[sampler.medium]
    return f"{number} {noun if number != 1 else noun.removesuffix('s')}"


def _choice(what: str, given: str, known: Any) -> None:
    if given not in known:
        raise InputError(f"{what} is one of {', '.join(known)}, but is {given!r}")


_CONNECTORS: dict[str, Literal["sparse", "bridge", "lagrange"]] = {
    "sparse": "sparse",
    "bridge": "bridge",
    "lagrange": "lagrange",
}


def adjoint_of(text: str) -> Adjoint:
    """Return an adjoint from its name and, after a colon, its number or its budget of memory.

    Raises:
        InputError: another name, no number where one is needed, or one where none is.
    """
    name, _, given = text.partition(":")
    connector = ""
    if name == "flowbp":
        connector, _, given = given.partition(":")
    makes: dict[str, Callable[[int | None], Adjoint]] = {
        "checkpointed": lambda n: Checkpointed(keep=n or 0),
        "backprop": lambda _: Backprop(),
        "reversible": lambda _: Reversible(),
        "truncated": lambda n: Truncated(last=n or 0),
        "coarse": lambda n: CoarseAdjoint(steps=n),
        "continuous": lambda n: Continuous(solver=Euler(), steps=n),
        "drtune": lambda n: DRTune() if n is None else DRTune(steps=n),
        "flowbp": lambda n: FlowBP(_CONNECTORS[connector], **({} if n is None else {"steps": n})),
        "leapalign": lambda _: LeapAlign(),
        "directalign": lambda _: DirectAlign(),
    }
    _choice("adjoint", name, makes)
    if name == "checkpointed" and given and not given.isdecimal():
        with suppress(InputError):
            return Checkpointed(budget=given)
    plain = name in ("backprop", "reversible", "leapalign", "directalign") or connector == "lagrange"
    wrong = (given and (plain or not given.isdecimal())) or (
        name == "flowbp" and connector not in _CONNECTORS
    )
    if wrong or (name == "truncated" and not given):
        raise InputError(
            f"adjoint {text!r} cannot be read; write checkpointed, checkpointed:5 (graphs to keep), checkpointed:8GiB, "
            "checkpointed:auto, backprop, reversible, truncated:5, coarse:25, continuous:25, drtune:3, "
            "flowbp:sparse:4, flowbp:bridge:4, flowbp:lagrange, leapalign or directalign"
        )
    if given:
        in_range(f"the number of the adjoint {name}", int(given), 0 if name == "checkpointed" else 1, 10**6)
    return makes[name](int(given) if given else None)


def check_steps(solver: str, adjoint: Adjoint) -> None:
    """Refuse an adjoint that cannot differentiate the steps of a solver.

    Raises:
        InputError: it cannot, with what is needed.
    """
    if isinstance(adjoint, Reversible) and not solver.startswith("coupled:"):
        raise InputError(
            f"adjoint reversible needs a reversible solver, but the solver is {solver}; choose coupled:euler, "
            "coupled:midpoint, coupled:heun or coupled:rk4"
        )
    if solver == "pipeline" and isinstance(adjoint, CoarseAdjoint | Continuous):
        raise InputError(
            "adjoint coarse and continuous need our own steps, but the solver is pipeline; choose another solver, or "
            "adjoint checkpointed, backprop or truncated"
        )
    if solver == "pipeline" and isinstance(adjoint, Surrogate):
        try:
            adjoint.in_pipeline()
        except InputError as error:
            raise InputError(
                "adjoint drtune, flowbp:bridge, flowbp:lagrange, leapalign and directalign need our own steps, but the "
                "solver is pipeline; choose another solver, or adjoint flowbp:sparse, truncated or checkpointed"
            ) from error


def sampler_of(
    name: str,
    *,
    steps: int,
    guidance_scale: float | None,
    negative_prompt: str = "",
    solver: str = "dpm++",
    adjoint: str = "checkpointed",
    mixed_precision: str = "no",
    device: str = "cpu",
    text_device: str | None = None,
    revision: str | None = None,
    variant: str | None = None,
    height: int | None = None,
    width: int | None = None,
    num_frames: int | None = None,
    frame_rate: float | None = None,
    audio_end_in_s: float | None = None,
    lora: Path | None = None,
    learned_embeds: Path | None = None,
) -> Sampler:
    """Return a sampler over a bundled model, a folder or a hub's pipeline, its weights frozen.

    It is tried once, on one prompt and in two steps without a graph, so that a model that cannot be used fails here.

    Args:
        name: such as "emoji", a folder of diffusers, or "stable-diffusion-v1-5/stable-diffusion-v1-5".
        steps: see `FlowSampler`.
        guidance_scale: of classifier-free guidance; None for the pipeline's own, and for 4 with the bundled model.
        negative_prompt: what all images are guided away from.
        solver, adjoint: see the head of this module.
        mixed_precision: no, fp16 or bf16: the network's dtype; states stay in float32.
        device: where it runs; see `device_of`.
        text_device: where its text encoders run; with the rest if None.
        revision, variant: see `load_pretrained_pipeline`.
        height, width: of the image, in pixels; the model's own if None.
        num_frames, frame_rate, audio_end_in_s: of videos and sound, with solver "pipeline"; the pipeline's own if None.
        lora: see `load_lora`.
        learned_embeds: see `load_textual_inversion`.

    Raises:
        InputError: an unknown name or word, a folder that holds no pipeline in safetensors, or a pipeline that takes
            no prompts, has no text encoder for text_device, does not fit the files or cannot be run.
    """
    began = time.perf_counter()
    _choice("solver", solver, [*SOLVERS, "pipeline"])
    _choice("mixed_precision", mixed_precision, DTYPES)
    in_range("steps", steps, 1)
    if guidance_scale is not None:
        in_range("guidance_scale", guidance_scale)
    made, dtype, place = adjoint_of(adjoint), DTYPES[mixed_precision], device_of(device)
    text_place = None if text_device is None else device_of(text_device)
    check_steps(solver, made)
    _check_source("model", name)
    for what, path in {"lora": lora, "learned_embeds": learned_embeds}.items():
        if path is not None and not path.exists():
            raise InputError(f"{what} {path}: there is no such file")
    files = {"revision": revision, "variant": variant}
    if bundled(name) and any(files.values()):
        raise InputError("revision and variant are not used with a bundled model, which has one of each")
    shared: dict[str, Any] = {"steps": steps, "adjoint": made, "negative_prompt": negative_prompt}
    if guidance_scale is not None or bundled(name):
        shared["guidance_scale"] = 4.0 if guidance_scale is None else guidance_scale
    sizes = {"height": height, "width": width}
    lengths = {"num_frames": num_frames, "frame_rate": frame_rate, "audio_end_in_s": audio_end_in_s}
    lengths = {key: value for key, value in lengths.items() if value is not None}
    if lengths and solver != "pipeline":
        raise InputError(
            f"{', '.join(lengths)} is of videos and sound, whose steps are the pipeline's own; give --solver pipeline"
        )
    with using(f"the model {name!r}"):
        if bundled(name) and solver != "pipeline":
            ours = load_bundled(
                name, dtype=dtype, device=place, solver=SOLVERS[solver](), **sizes, **shared
            )
            words = _extended(placed(ours.pipe, place, text_place), lora, learned_embeds)
            ours.model.vocabulary = frozenset(ours.model.vocabulary or ()) | words
            sampler: Sampler = ours
        else:
            pipe = load_pretrained_pipeline(folder(name) if bundled(name) else name, dtype, **files)
            _extended(placed(pipe, place, text_place), lora, learned_embeds)
            if solver == "pipeline":
                rate = lengths.pop("frame_rate", None)
                given = {key: value for key, value in sizes.items() if value is not None} | lengths
                sampler = PipelineSampler(pipe, arguments=given, frame_rate=rate, **shared)
            else:
                sampler = FlowSampler.from_pipeline(pipe, solver=SOLVERS[solver](), **sizes, **shared)
        if sampler.medium != "audio":
            _, high, wide = sampler.image_shape
            if (high, wide) != (height or high, width or wide):
                raise InputError(
                    f"images of {height or high} x {width or wide} cannot be made by the model {name!r}, which would "
                    f"make {high} x {wide}; give another height and width"
                )
        check_memory(sampler, 1, 1)
        with torch.no_grad():
            trial = sampler.replace(steps=min(steps, 2), adjoint=Checkpointed())
            cond = trial.encode([""])
            if not len(cond):
                raise InputError(f"the model {name!r} takes no prompts, which this command needs")
            trial(trial.noise(1), cond)
    logger.info(
        "model %s: %d million weights in %s on %s, %s with %s in %s steps, %s of %s, ready in %.1f s",
        name,
        sum(weight.numel() for weight in network_of(sampler).parameters()) // 10**6,
        dtype,
        place,
        type(sampler).__name__,
        "the pipeline's scheduler" if sampler.solver is None else sampler.solver,
        sampler.steps,
        NOUNS[sampler.medium],
        " x ".join(map(str, sampler.output_shape)),
        time.perf_counter() - began,
    )
    return sampler


def _extended(pipe: Any, lora: Path | None, learned_embeds: Path | None) -> set[str]:
    """Load a LoRA and a token into a pipeline, freeze all of its weights, and return the words of the token."""
    words = set()
    if lora is not None:
        load_lora(pipe, lora)
    if learned_embeds is not None:
        words = {load_textual_inversion(pipe, learned_embeds)}
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            part.requires_grad_(False).eval()
    return words
