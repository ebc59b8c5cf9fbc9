"""Flags that commands share, named as in diffusers' scripts, and a YAML file for all of them.

`--config file.yaml` gives every flag a default; what is typed wins. The resolved values are saved beside the result,
so that `--config OUTPUT/config.yaml` runs the same again. A flag's values are checked where it is declared, before
anything is loaded: numbers are finite and in their range, words are among the known ones.
"""

from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from .._types import InputError, in_range
from ..files.atomic_write import write_file
from ..optimization.distributed import Processes
from ..optimization.run_folder import hold_folder
from ..samplers.base import Sampler
from ..zoo import bundled
from .config_file import read_config
from .parse_sampler import DTYPES, SOLVERS, sampler_of

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
    "Overwrite",
    "ReportTo",
    "Resume",
    "Seed",
    "SolverFlag",
    "announce",
    "choice",
    "for_bundled",
    "free_folder",
    "number",
    "prompts_option",
    "read_flags",
    "refuse_unused",
    "reporter",
    "resolved",
    "sampler_from",
    "save_config",
]

MANY = 10**6  # the largest of most counts: what is beyond is a slip of the finger
LONGEST_FILE = 2**20
_FILES = (".txt", ".csv", ".json", ".jsonl", ".yaml", ".yml", ".toml", ".md")


def number(
    flag: str, low: float | int, high: float | int = MANY, *, open_low: bool = False, about: str
) -> Any:
    """An option of finite numbers in a range; see `ranges.in_range`."""

    def check(value: Any) -> Any:
        for each in value if isinstance(value, list | tuple) else [value]:
            if each is not None:
                in_range(flag, each, low, high, open_low=open_low)
        return value

    return typer.Option(flag, callback=check, help=about)


def choice(flag: str, known: Collection[str], *, about: str) -> Any:
    """An option whose value is one of some words."""

    def check(value: Any) -> Any:
        if value is not None and value not in known:
            raise InputError(f"{flag} is one of {', '.join(known)}, but is {value!r}")
        return value

    return typer.Option(flag, callback=check, help=about)


def for_bundled(flag: str, ours: str, others: str | None, *, about: str) -> Any:
    """An option whose default was made for the bundled model, and holds with that one alone.

    Args:
        flag: its name.
        ours: the default with a bundled model.
        others: the default with any other.
        about: the option's help.
    """

    def fill(ctx: typer.Context, value: Any) -> Any:
        if value is not None:
            return value
        return ours if bundled(ctx.params["pretrained_model_name_or_path"]) else others

    return typer.Option(flag, callback=fill, help=f"{about} [{ours} with the bundled model]")


def prompts_option(flag: str, *, about: str) -> Any:
    """An option of prompts; a value that names a file stands for the prompts in it, one a line."""
    return typer.Option(
        flag, callback=lines_of_files(flag), help=f"{about} May be repeated, or be a file of prompts."
    )


def lines_of_files(flag: str) -> Callable[[Any], Any]:
    """A callback that replaces the names of files by their lines."""

    def read(value: Any) -> Any:
        return [line for each in value or () for line in _prompts(flag, each)] or value

    return read


def _prompts(flag: str, text: str) -> list[str]:
    """The prompt itself, or the prompts in the file that it names."""
    try:
        path = Path(text)
        named = path.suffix.lower() in _FILES and " " not in text
        if not path.exists() or path.is_dir():
            if named:
                raise InputError(
                    f"{flag} {text}: there is no such file, and it does not look like a prompt"
                )
            return [text]
        if named and path.suffix.lower() != ".txt":
            raise InputError(f"{flag} {text}: prompts are read from plain text (.txt), one a line")
        if not path.is_file():
            raise InputError(f"{flag} {text}: it is not an ordinary file of prompts")
        with open(path, "rb") as file:
            content = file.read(LONGEST_FILE + 1)
        if len(content) > LONGEST_FILE:
            raise InputError(
                f"{flag} {text}: the file has more than {LONGEST_FILE} bytes; are these prompts?"
            )
        lines = content.decode("utf-8-sig").splitlines()
    except InputError:
        raise
    except UnicodeDecodeError as error:
        raise InputError(f"{flag} {text}: the file is not a text in UTF-8, with a prompt a line") from error
    except (OSError, ValueError):  # too long for a file's name, say
        return [text]
    found = [line.strip() for line in lines if line.strip()]
    if not found or any(not line.isprintable() for line in found):
        raise InputError(f"{flag} {text}: the file must hold one printable prompt a line")
    return found


def _read_config(ctx: typer.Context, path: Path | None) -> Path | None:
    """Make a file's values the defaults of all flags."""
    if path is None:
        return None
    flags = {p.name: p for p in ctx.command.params if p.name and p.name not in ("config", "help")}
    ctx.default_map = {**(ctx.default_map or {}), **read_config(path, flags)}
    return path


Config = Annotated[
    Path | None,
    typer.Option("--config", callback=_read_config, is_eager=True, help="YAML file with values of flags."),
]
OutputDir = Annotated[Path, typer.Option("--output_dir", help="Folder for the results.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Write over the results of an earlier run in the folder.")
]
Model = Annotated[
    str,
    typer.Option(
        "--pretrained_model_name_or_path", is_eager=True, help="Bundled model, folder or name on a hub."
    ),
]
Seed = Annotated[int, number("--seed", 0, 2**63 - 1, about="Random seed.")]
MaxTrainSteps = Annotated[int, number("--max_train_steps", 1, about="Steps of the optimization.")]
LearningRate = Annotated[
    float, number("--learning_rate", 0, open_low=True, about="Step length of the optimizer, above 0.")
]
NumInferenceSteps = Annotated[
    int, number("--num_inference_steps", 1, 10_000, about="Steps of the sampler.")
]
GuidanceScale = Annotated[
    float | None,
    number(
        "--guidance_scale",
        0,
        1000,
        about="Weight of classifier-free guidance; no guidance at 1 or less. [4 with the bundled model, else the "
        "pipeline's own]",
    ),
]
MixedPrecision = Annotated[str, choice("--mixed_precision", DTYPES, about="no, fp16 or bf16.")]
SolverFlag = Annotated[
    str,
    choice(
        "--solver",
        [*SOLVERS, "pipeline"],
        about="dpm++, euler, midpoint, heun, rk4, ab1 to ab4; pipeline for its own scheduler.",
    ),
]
AdjointFlag = Annotated[
    str,
    typer.Option(
        "--adjoint",
        help="checkpointed[:keep], backprop, truncated:last, coarse[:steps], continuous[:steps].",
    ),
]
Device = Annotated[
    str, typer.Option("--device", help="auto (CUDA, else MPS, else the CPU), cpu, cuda, cuda:1, mps.")
]
Batch = Annotated[int, number("--train_batch_size", 1, about="Images at once.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue from the checkpoints in the folder.")]
CheckpointingSteps = Annotated[
    int, number("--checkpointing_steps", 0, about="Steps between checkpoints; 0 for the end alone.")
]
ReportTo = Annotated[str, choice("--report_to", ["none", "tensorboard"], about="none or tensorboard.")]


def free_folder(path: Path, *results: str, resume: bool = False, overwrite: bool = False) -> Path:
    """An output folder in which no earlier run left anything that this one would write over.

    Args:
        path: of the folder; made if it is not there.
        results: names of files, or patterns, that a run leaves there.
        resume, overwrite: whether that is wanted.
    Raises:
        InputError: the folder holds results, or cannot be written to.
    """
    folder = hold_folder(path, resume or None)
    there = sorted(each.name for name in results for each in folder.glob(name))
    if there and not (resume or overwrite):
        raise InputError(
            f"the output folder {folder} holds an earlier run ({', '.join(there[:3])}); give another --output_dir, "
            "--resume where the command has it, or --overwrite"
        )
    return folder


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


def refuse_unused(ctx: typer.Context, names: Iterable[str], why: str) -> None:
    """Refuse flags that were typed and that this run would ignore.

    Args:
        ctx: of the command.
        names: of its parameters.
        why: the rest of the sentence, after "--flag is not used".
    Raises:
        InputError: one of them was typed. A config's values are defaults, and may lie idle.
    """
    for name in names:
        source = ctx.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            flag = next(p.opts[0] for p in ctx.command.params if p.name == name)
            raise InputError(f"{flag} is not used {why}")


def announce(*lines: str) -> None:
    """Print lines, in one of several processes."""
    if Processes.here().first:
        print("\n".join(lines))


def resolved(ctx: typer.Context) -> dict[str, Any]:
    """Every flag's value, as YAML and JSON know values."""
    quiet = ("config", "resume", "overwrite")
    values = {name: value for name, value in ctx.params.items() if name not in quiet}
    plain = {name: str(v) if isinstance(v, Path) else v for name, v in values.items()}
    return {name: (list(v) or None) if isinstance(v, tuple) else v for name, v in plain.items()}


def save_config(ctx: typer.Context, folder: Path) -> str:
    """Write the flags beside the result; returns the command that repeats the run."""
    text = yaml.safe_dump(resolved(ctx), sort_keys=True, allow_unicode=True)
    write_file(folder / "config.yaml", text.encode())
    return f"adjointdpm {ctx.command.name} --config {folder / 'config.yaml'}"


def read_flags(path: Path) -> dict[str, Any]:
    """The flags that `save_config` wrote.

    Raises:
        InputError: the file is damaged.
    """
    try:
        values = yaml.safe_load(path.read_bytes())
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise InputError(f"{path} is damaged ({error}); delete it to resume without it") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} is damaged; delete it to resume without it")
    return values


def reporter(report_to: str, folder: Path) -> Callable[[int, dict[str, float]], None] | None:
    """A function that writes a run's losses for tensorboard.

    Raises:
        InputError: another tool, or tensorboard is not installed or cannot write.
    """
    if report_to == "none" or not Processes.here().first:
        return None
    if report_to != "tensorboard":
        raise InputError(f"report_to is none or tensorboard, but is {report_to!r}")
    try:
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(str(folder / "tensorboard"))
    except ImportError as error:
        raise InputError(
            "report_to tensorboard needs it installed: pip install tensorboard (or report_to none)"
        ) from error
    except OSError as error:
        raise InputError(
            f"tensorboard cannot write to {folder / 'tensorboard'}: {error.strerror}"
        ) from error

    def report(step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)
        writer.flush()  # it writes every two minutes, and not at the end of a process

    return report
