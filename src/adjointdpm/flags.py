"""Flags that commands share, named as in diffusers' scripts, and a YAML file for all of them.

`--config file.yaml` gives every flag a default; what is typed wins. What came of it is saved beside the result,
so that `--config OUTPUT/config.yaml` runs the same again.
"""

import difflib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from ._types import InputError
from .models import sampler_of
from .sampler import Sampler
from .tasks.checkpoint import write_file

__all__ = [
    "AdjointFlag",
    "Batch",
    "CheckpointingSteps",
    "Config",
    "Device",
    "GuidanceScale",
    "LearningRate",
    "MaxTrainSteps",
    "MixedPrecision",
    "Model",
    "NumInferenceSteps",
    "OutputDir",
    "ReportTo",
    "Resume",
    "Seed",
    "SolverFlag",
    "reporter",
    "resolved",
    "sampler_from",
    "save_config",
]


def _read_config(ctx: typer.Context, path: Path | None) -> Path | None:
    """Make a file's values the defaults of all flags."""
    if path is None:
        return None
    try:
        values = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the config {path}: {error}") from error
    except yaml.YAMLError as error:
        raise InputError(f"the config {path} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise InputError(f"the config {path} must hold lines of the form `flag: value`")
    known = [p.name for p in ctx.command.params if p.name and p.name not in ("config", "help")]
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, 1, 0.0)
            raise InputError(f"the config {path} has an unknown key {name!r}; did you mean {near[0]!r}?")
    ctx.default_map = {**(ctx.default_map or {}), **values}
    return path


Config = Annotated[
    Path | None,
    typer.Option("--config", callback=_read_config, is_eager=True, help="YAML file with values of flags."),
]
OutputDir = Annotated[Path, typer.Option("--output_dir", help="Folder for the results.")]
Model = Annotated[
    str,
    typer.Option("--pretrained_model_name_or_path", help="Bundled model, folder or hub's name."),
]
Seed = Annotated[int, typer.Option("--seed", help="Of all that is drawn.")]
MaxTrainSteps = Annotated[int, typer.Option("--max_train_steps", min=1, help="Steps of the optimisation.")]
LearningRate = Annotated[float, typer.Option("--learning_rate")]
NumInferenceSteps = Annotated[int, typer.Option("--num_inference_steps", min=1, help="Of the sampler.")]
GuidanceScale = Annotated[float, typer.Option("--guidance_scale", help="Of classifier-free guidance.")]
MixedPrecision = Annotated[str, typer.Option("--mixed_precision", help="no, fp16 or bf16.")]
SolverFlag = Annotated[
    str, typer.Option("--solver", help="dpm++, euler, midpoint, heun, rk4, ab1..4; pipeline: its own.")
]
AdjointFlag = Annotated[
    str,
    typer.Option("--adjoint", help="checkpointed[:keep], backprop, truncated:last, continuous[:steps]."),
]
Device = Annotated[str, typer.Option("--device", help="Such as cpu or cuda.")]
Batch = Annotated[int, typer.Option("--train_batch_size", min=1, help="Pictures at once.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the folder's checkpoints.")]
CheckpointingSteps = Annotated[int, typer.Option("--checkpointing_steps", min=0)]
ReportTo = Annotated[str, typer.Option("--report_to", help="none or tensorboard.")]


def sampler_from(ctx: typer.Context) -> Sampler:
    """The sampler that a command's flags describe."""
    return sampler_of(
        ctx.params["pretrained_model_name_or_path"],
        steps=ctx.params["num_inference_steps"],
        **{
            name: ctx.params[name]
            for name in ("guidance_scale", "solver", "adjoint", "mixed_precision", "device")
        },
    )


def resolved(ctx: typer.Context) -> dict[str, Any]:
    """Every flag's value, as YAML and JSON know values."""
    values = {name: value for name, value in ctx.params.items() if name not in ("config", "resume")}
    plain = {name: str(v) if isinstance(v, Path) else v for name, v in values.items()}
    return {name: list(v) if isinstance(v, tuple) else v for name, v in plain.items()}


def save_config(ctx: typer.Context, folder: Path) -> str:
    """Write the flags beside the result; returns the command that repeats the run."""
    text = yaml.safe_dump(resolved(ctx), sort_keys=True, allow_unicode=True)
    write_file(folder / "config.yaml", text.encode())
    return f"adjointdpm {ctx.command.name} --config {folder / 'config.yaml'}"


def reporter(report_to: str, folder: Path) -> Callable[[int, dict[str, float]], None] | None:
    """What writes a run's losses for tensorboard.

    Raises:
        InputError: another tool, or tensorboard is not installed.
    """
    if report_to == "none":
        return None
    if report_to != "tensorboard":
        raise InputError(f"report_to is none or tensorboard, but is {report_to!r}")
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise InputError(
            "report_to tensorboard needs it installed: pip install tensorboard (or report_to none)"
        ) from error
    writer = SummaryWriter(str(folder / "tensorboard"))

    def report(step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)
        writer.flush()  # it writes every two minutes, and not at the end of a process

    return report
