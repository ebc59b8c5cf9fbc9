"""Options and checks that several commands share."""

from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any

import typer

from .._types import InputError
from ..files.checkpoint import check_config
from ..metrics.image_classifier import Classifier
from ..optimization.distributed import Processes
from ..samplers.base import Sampler
from .options import (
    for_bundled,
    number,
    prompts_option,
    read_flags,
    refuse_unused,
    resolved,
    save_config,
)
from .parse_metric import Networks
from .parse_sampler import classifier_of

RESULTS = ("result.json", "state/**/*.safetensors")
"""What a task leaves in its folder: its result, and checkpoints on the way there."""


# What does not change a result, so that a checkpoint need not agree on it; the steps are among the task's settings.
_QUIET = ("output_dir", "report_to", "checkpointing_steps", "judge", "max_train_steps")


Prompts = Annotated[list[str], prompts_option("--prompt", about="Prompts to train on.")]


HeldOut = Annotated[list[str], prompts_option("--validation_prompt", about="Prompts to report on.")]


Metrics = Annotated[
    list[str],
    typer.Option("--metric", help='Such as "style:photo.png" or "0.3*content"; several are added up.'),
]


Features = Annotated[
    str | None,
    for_bundled(
        "--features", "emoji/resnet", None, about="Classifier whose features style and content compare."
    ),
]


Layers = Annotated[
    list[int] | None, number("--layer", -1000, 1000, about="Which hidden states; may be repeated.")
]


Clip = Annotated[str, typer.Option("--clip_model", help="CLIP model for clip-text and clip-image.")]


Classifiers = Annotated[
    str | None, for_bundled("--classifier", "emoji/resnet", None, about="For the metrics label and margin.")
]


Judge = Annotated[
    str | None,
    for_bundled(
        "--judge", "emoji/judge", "none", about="Classifier that says what images show; none for none."
    ),
]


Noises = Annotated[int, number("--num_validation_images", 1, about="Noises for each prompt.")]


def agreed(ctx: typer.Context, quiet: Collection[str] = _QUIET) -> dict[str, Any]:
    """The flags that a checkpoint must agree on: all but the quiet ones."""
    return {name: value for name, value in resolved(ctx).items() if name not in quiet}


def saved(ctx: typer.Context, folder: Path, quiet: Collection[str] = _QUIET) -> str:
    """Save the flags once; returns the command that repeats the run.

    Raises:
        InputError: the run that is to be resumed was made with other flags, which stay as they are in the file.
    """
    path = folder / "config.yaml"
    if ctx.params["resume"] and path.exists():
        before, steps = read_flags(path), ctx.params["max_train_steps"]
        check_config(path, before, agreed(ctx, quiet), free=quiet)
        if isinstance(before.get("max_train_steps"), int) and steps < before["max_train_steps"]:
            raise InputError(
                f"{path} was made with max_train_steps = {before['max_train_steps']}, and --resume goes on to as many "
                f"steps or more, but this run has {steps}"
            )
    return save_config(ctx, folder) if Processes.here().first else ""


def networks_of(ctx: typer.Context, sampler: Sampler) -> Networks:
    """The networks that a command's flags name for its metrics."""
    named = ctx.params
    return Networks(
        sampler,
        named["features"],
        tuple(named["layer"] or (0, 1, 2)),
        named.get("classifier"),
        named.get("clip_model", Networks.clip),
    )


def check_networks(ctx: typer.Context, networks: Networks) -> None:
    """Refuse flags of networks that no metric needs."""
    names = {"features", "layer", "classifier", "clip_model"} & set(ctx.params)
    refuse_unused(ctx, sorted(names - networks.used), "by these metrics")


def judge_of(name: str | None, sampler: Sampler) -> Classifier | None:
    """The judge that a flag names."""
    if name is None or name == "none":
        return None
    return classifier_of(name, sampler.noise(1).device, sampler.image_shape)
