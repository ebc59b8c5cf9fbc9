"""The command line: the only place where text becomes values.

Exit codes: 0 done; 2 input that cannot be used, in one line on the error stream; 130 Ctrl-C and 143 SIGTERM, with
what was done saved; 1 an error of this library's own, to be reported. ADJOINTDPM_TRACEBACK=1 shows the traceback of
any of them.
"""

import os
import sys
import traceback
import warnings
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from .._types import AdjointDPMError, InputError
from ..analysis.comparison import compare as compare_gradients
from ..files.atomic_write import write_file
from ..files.images import as_8_bit, png
from ..metrics import Chroma
from ..optimization.signals import Interrupted, end_once, ending
from ..tasks import InterruptedRunError
from ..zoo import load_bundled
from .audit import audit
from .demo import demo as run_demo
from .guide import guide
from .invert import invert
from .options import (
    Device,
    NumInferenceSteps,
    OutputDir,
    Overwrite,
    Seed,
    free_folder,
    lines_of_files,
    number,
)
from .parse_sampler import check_memory, device_of
from .tune import tune

__all__ = ["app", "main"]

app = typer.Typer(help="Gradients through diffusion samplers.", pretty_exceptions_enable=False)

app.command()(audit)
app.command()(tune)
app.command()(invert)
app.command()(guide)

TOGETHER = 16  # images that `sample` makes at once

Scale = Annotated[
    float,
    number(
        "--guidance_scale", 0, 1000, about="Weight of classifier-free guidance; no guidance at 1 or less."
    ),
]


def _version(value: bool) -> None:
    if value:
        names = ("adjointdpm", "torch", "diffusers", "transformers")
        own, *others = [f"{name} {metadata.version(name)}" for name in names]
        print(f"{own} ({', '.join(others)})")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def root(
    ctx: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the versions and exit."),
    ] = False,
) -> None:
    """Gradients through diffusion samplers."""
    if ctx.invoked_subcommand is None:
        print(ctx.get_help())


def _in_one_process(command: str) -> None:
    """Refuse a launcher's several processes, which would do the same work and write the same files."""
    world = os.environ.get("WORLD_SIZE", "")
    if world not in ("", "1"):
        raise InputError(
            f"{command} runs in one process, but was started in {world}; start it without torchrun"
        )


@app.command()
def sample(
    prompt: Annotated[
        list[str],
        typer.Argument(
            callback=lines_of_files("PROMPT"),
            help='Such as "a red apple on a blue background", or a file of prompts.',
        ),
    ],
    output_dir: OutputDir = Path("outputs/sample"),
    batch: Annotated[int, number("--batch", 1, about="Images for each prompt.")] = 4,
    seed: Seed = 0,
    steps: NumInferenceSteps = 25,
    guidance_scale: Scale = 4.0,
    device: Device = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Make images with the bundled model."""
    _in_one_process("sample")
    folder = free_folder(output_dir, "[0-9][0-9]*-[0-9][0-9]*.png", overwrite=overwrite)
    sampler = load_bundled("emoji", steps=steps, guidance_scale=guidance_scale, device=device_of(device))
    check_memory(sampler, batch, TOGETHER)
    conditions = [sampler.encode(each) for each in prompt]
    noise = sampler.noise(batch, seed)
    for number_, cond in enumerate(conditions):
        for first in range(0, batch, TOGETHER):
            with torch.no_grad():
                images = as_8_bit(sampler(noise[first : first + TOGETHER], cond))
            for i, image in enumerate(images, first):
                path = folder / f"{number_:02d}-{i:02d}.png"
                write_file(path, png(image))
                print(path)


@app.command()
def compare(
    prompt: Annotated[str, typer.Argument(help="A prompt of the bundled model.")],
    output_dir: OutputDir = Path("outputs/compare"),
    seed: Seed = 0,
    steps: NumInferenceSteps = 25,
    guidance_scale: Scale = 4.0,
    repeats: Annotated[int, number("--repeats", 1, 1000, about="Timed rounds.")] = 3,
    weights: Annotated[bool, typer.Option(help="Differentiate the weights, too.")] = False,
    device: Device = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Measure every gradient's error and cost on the bundled model: a table, JSON and an image."""
    _in_one_process("compare")
    folder = free_folder(output_dir, "compare.json", overwrite=overwrite)
    sampler = load_bundled("emoji", steps=steps, guidance_scale=guidance_scale, device=device_of(device))
    check_memory(sampler, 1, 1)
    sampler.requires_grad_(False)
    sampler.model.denoiser.requires_grad_(weights)
    cond, noise = sampler.encode(prompt), sampler.noise(1, seed)
    found = compare_gradients(sampler, Chroma(), noise=noise, cond=cond, repeats=repeats)
    print(found)
    write_file(folder / "compare.json", found.to_json().encode())
    print(found.picture(folder / "compare.png"))


@app.command()
def demo(output_dir: OutputDir = Path("outputs/demo"), overwrite: Overwrite = False) -> None:
    """Run the main job on the bundled model and write a page about it."""
    _in_one_process("demo")
    folder = free_folder(output_dir, "result.json", overwrite=overwrite)
    print(f"page: {run_demo(folder).resolve()}")


def main() -> None:
    """Run the command line."""
    end_once()
    for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY", "HF_HUB_VERBOSITY"):
        os.environ.setdefault(name, "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    stdin = sys.stdin
    with open(os.devnull) as nothing, warnings.catch_warnings():
        warnings.showwarning = _warn
        sys.stdin = (
            nothing  # no command reads it, and a user's module that does must not wait for a terminal
        )
        try:
            code = _run()
        finally:
            sys.stdin = stdin
            _leave_group()
    sys.exit(_flushed(code))


def _run() -> int:
    """Run the command; returns the exit code."""
    try:
        for each in sys.argv[1:]:
            if not each.isascii():
                _refuse_bytes(each)
        code = app(standalone_mode=False)
        return code if isinstance(code, int) else 0
    except (Exception, KeyboardInterrupt, Interrupted) as error:
        ending()
        if os.environ.get("ADJOINTDPM_TRACEBACK"):
            traceback.print_exc()
        code, says = _outcome(error)
        print(_line(says), file=sys.stderr)
        return code


def _outcome(error: BaseException) -> tuple[int, str]:
    """The exit code for an error, and the line that says what happened."""
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return 130, "interrupted"
    if isinstance(error, Interrupted):
        return error.code, f"{error}; a task goes on from its last checkpoint with --resume"
    if isinstance(error, InterruptedRunError):
        return error.code, str(error)
    if isinstance(error, AdjointDPMError):
        return 2, str(error)
    told = getattr(error, "format_message", None)  # typer's, about flags, whichever click it brings along
    if told is not None:
        return getattr(error, "exit_code", 2), told()
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "not enough memory" in str(error):
        first = str(error).strip().partition("\n")[0]
        return 2, (
            f"out of memory: {first or type(error).__name__}; make fewer images at a time (--train_batch_size 1), or "
            "use --mixed_precision bf16 or a device with more memory"
        )
    if isinstance(error, OSError) and error.strerror:
        where = "" if error.filename is None else f": {error.filename}"
        return 2, f"the system says: {error.strerror}{where}"
    return 1, (
        f"internal error, which is a bug of adjointdpm: {type(error).__name__}: {error}; run again with "
        "ADJOINTDPM_TRACEBACK=1 and report what it prints"
    )


def _line(text: str) -> str:
    """A text as one printable line of the error stream."""
    return "adjointdpm: " + "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))


def _refuse_bytes(argument: str) -> None:
    try:
        argument.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"the argument {argument!a} is not a text in UTF-8") from error


def _warn(message: Any, *_: Any, **__: Any) -> None:
    print(_line(f"warning: {message}"), file=sys.stderr)


def _leave_group() -> None:
    """Leave the group of processes, which complains otherwise."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _flushed(code: int) -> int:
    """The exit code, once what was printed has arrived."""
    try:
        sys.stdout.flush()
    except OSError as error:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, for what the interpreter flushes at its end
        if not isinstance(error, BrokenPipeError):  # whoever read a pipe may leave early
            print(_line(f"cannot write the output: {error.strerror}"), file=sys.stderr)
            return code or 2
    return code
