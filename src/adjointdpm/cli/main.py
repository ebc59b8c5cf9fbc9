"""The command line: the only place where text becomes values.

Exit codes: 0 done; 2 input that cannot be used, in one line on the error stream; 130 Ctrl-C and 143 SIGTERM, with
what was done saved; 1 an error of this library's own, to be reported. ADJOINTDPM_TRACEBACK=1 shows the traceback of
any of them. Warnings, and with --verbose what is done, come as lines of the logger `adjointdpm`.
"""

import difflib
import os
import sys
import traceback
import warnings
from importlib import import_module, metadata

import click

from ..optimization.signals import Interrupted, end_once, ending
from .log import line, listen, warn

__all__ = ["COMMANDS", "app", "main"]

COMMANDS = {
    "sample": "Make images with a model.",
    "compare": "Measure the error and cost of every way to compute a gradient.",
    "demo": "Run the main job on the bundled model and write a page about it.",
    "tune": "Train weights (a LoRA) towards a metric of the finished image.",
    "invert": "Learn a token for a visual effect, from a metric or from images.",
    "audit": "Look for initial noise whose images a classifier gets wrong.",
    "guide": "Guide images to a metric, without training.",
    "solve": "Reconstruct images from measurements of them.",
    "studio": "Serve a local page on which a person watches a gradient work.",
}
"""What each command does; its flags are those of the dataclass of its name, in the module of its name."""


class _Commands(click.Group):
    """The commands, each of which is imported when it is run, since torch takes seconds."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:
        if cmd_name not in COMMANDS:
            (near,) = difflib.get_close_matches(cmd_name, COMMANDS, 1, 0.0)
            raise click.UsageError(f"there is no command {cmd_name!r}; did you mean {near!r}?")
        from .flags import command_of

        module = import_module(f"{__package__}.{cmd_name}")
        return command_of(cmd_name, getattr(module, cmd_name.capitalize()), COMMANDS[cmd_name])

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        names = ("adjointdpm", "torch", "diffusers", "transformers")
        own, *others = [f"{name} {metadata.version(name)}" for name in names]
        print(f"{own} ({', '.join(others)})")
        ctx.exit()


@click.group(cls=_Commands, invoke_without_command=True)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_version,
    help="Print the versions and exit.",
)
@click.pass_context
def app(ctx: click.Context) -> None:
    """Gradients through diffusion samplers."""
    if ctx.invoked_subcommand is None:
        print(ctx.get_help())


def main() -> None:
    """Run the command line."""
    end_once()
    for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY", "HF_HUB_VERBOSITY"):
        os.environ.setdefault(name, "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    stdin = sys.stdin
    with open(os.devnull) as nothing, warnings.catch_warnings():
        warnings.showwarning = warn
        listen()
        sys.stdin = (
            nothing  # No command reads it, and a user's module that does must not wait for a terminal.
        )
        try:
            code = _run()
        finally:
            sys.stdin = stdin
            _leave_group()
    sys.exit(_flushed(code))


def _run() -> int:
    """Return the exit code of the command, after it has run."""
    try:
        for each in sys.argv[1:]:
            if not each.isascii():
                _refuse_bytes(each)
        code = app.main(prog_name="adjointdpm", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except (Exception, KeyboardInterrupt, Interrupted) as error:
        ending()
        if os.environ.get("ADJOINTDPM_TRACEBACK"):
            traceback.print_exc()
        code, says = _outcome(error)
        print(line(says), file=sys.stderr)
        return code


def _outcome(error: BaseException) -> tuple[int, str]:
    """Return the exit code for an error, and the line that says what happened."""
    if isinstance(error, KeyboardInterrupt | click.Abort):
        return 130, "interrupted"
    if isinstance(error, Interrupted):
        return error.code, f"{error}; a task goes on from its last checkpoint with --resume"
    if isinstance(error, click.ClickException):
        return error.exit_code, error.format_message()
    if isinstance(error, ModuleNotFoundError) and not (error.name or "").startswith("adjointdpm"):
        return 2, f"{error}; pip install 'adjointdpm[all]' installs all that the commands need"
    import torch  # not before, since it takes seconds

    from .._types import AdjointDPMError
    from ..optimization.loop import InterruptedRunError

    if isinstance(error, InterruptedRunError):
        return error.code, str(error)
    if isinstance(error, AdjointDPMError):
        return 2, str(error)
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


def _refuse_bytes(argument: str) -> None:
    try:
        argument.encode()
    except UnicodeEncodeError as error:
        raise click.UsageError(f"the argument {argument!a} is not a text in UTF-8") from error


def _leave_group() -> None:
    """Leave the group of processes, which complains otherwise."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _flushed(code: int) -> int:
    """Return the exit code, once what was printed has arrived."""
    try:
        sys.stdout.flush()
    except OSError as error:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, for what the interpreter flushes at its end
        if not isinstance(error, BrokenPipeError):  # whoever read a pipe may leave early
            print(line(f"cannot write the output: {error.strerror}"), file=sys.stderr)
            return code or 2
    return code
