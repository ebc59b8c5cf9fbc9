"""A run's output folder: its own while it lasts, and no earlier run's results are overwritten.

    with run_folder(path, resume) as folder: ...
    part = finished_part(folder / "state" / "a.safetensors", config, resume)

A file `.lock` in it names the process, which holds a lock of the operating system on it: a second run is refused at
once, and a process that was killed leaves no lock behind. Several processes of one run hold it once, by the first.
A task that is made of parts saves each when it is finished, with what decides it, and a resumed run reads it.
"""

import atexit
import functools
import inspect
import os
import socket
import sys
import threading
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from torch import Tensor

from .._types import InputError
from ..files.checkpoint import check_config, has_checkpoint, load_checkpoint, previous
from ..files.images import output_folder
from .distributed import Processes

try:
    import fcntl
except ImportError:  # there is none on Windows
    fcntl = None

__all__ = ["alone", "finished_part", "hold_folder", "run_folder"]

P = ParamSpec("P")
R = TypeVar("R")

_CHECKPOINT = Path("checkpoint.safetensors")
_RESULTS = (
    "result.json",
    *(f"{d}{p}" for p in (_CHECKPOINT, previous(_CHECKPOINT)) for d in ("", "state/", "state/*/")),
)


class _Held(threading.local):
    """Folders that this thread holds."""

    def __init__(self) -> None:
        self.folders: set[Path] = set()


_held = _Held()


@contextmanager
def run_folder(path: str | Path, resume: bool | None = None, quiet: bool = False) -> Iterator[Path]:
    """Make a folder for results, and keep other runs out of it until the block ends.

    A folder that this thread holds already may be entered again, as a task does with a command's; what lies in it
    belongs to the same run.

    Args:
        path: of the folder.
        resume: whether to go on from what is in it; False refuses a folder that holds results. None: they may be there,
            and files of the same names are replaced.
        quiet: without a line that says that there is nothing to resume from.

    Yields:
        Path: the folder.

    Raises:
        InputError: it cannot be made or written to, another run is writing to it, or it holds an earlier one's results.
    """
    folder = output_folder(path)
    whole = folder.resolve()
    if _held.folders & {whole, *whole.parents}:
        yield folder
        return
    first = Processes.here().first
    with ExitStack() as stack:
        if first:
            stack.enter_context(_locked(folder))
        _held.folders.add(whole)
        stack.callback(_held.folders.discard, whole)
        earlier = next((found for each in _RESULTS for found in sorted(folder.glob(each))), None)
        if resume is False and earlier is not None:
            raise InputError(
                f"{folder} holds {earlier.relative_to(folder)} of an earlier run, which this one would overwrite; "
                "go on from it with --resume (resume=True), write over it with --overwrite (overwrite=True), or use "
                "another output folder"
            )
        if resume and earlier is None and first and not quiet:
            print(f"adjointdpm: nothing to resume from in {folder}: the run starts anew", file=sys.stderr)
        yield folder


_command = ExitStack()
atexit.register(_command.close)


def hold_folder(path: str | Path, resume: bool | None = None) -> Path:
    """Make a folder for results, and keep other runs out of it until the program ends: for the command line.

    Returns:
        Path: the folder.

    Args, Raises: as of `run_folder`.
    """
    return _command.enter_context(run_folder(path, resume))


def alone(task: Callable[P, R]) -> Callable[P, R]:
    """Return a task that keeps other runs out of its `output`, as `run_folder` does, while it runs."""
    signature = inspect.signature(task)

    @functools.wraps(task)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        given = signature.bind(*args, **kwargs)
        given.apply_defaults()
        options = given.arguments["run"]
        with run_folder(given.arguments["output"], options.earlier, options.quiet):
            return task(*args, **kwargs)

    return run


def finished_part(
    path: Path, config: Mapping[str, Any], resume: bool, free: Collection[str] = ()
) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Return a part of a run that `save_checkpoint(path, tensors, {"config": config})` kept, to go on from it.

    Args:
        path: of the part.
        config: what decides it; it must agree with that of the file.
        resume: whether the run goes on from an earlier one.
        free: names of what may differ all the same.

    Returns:
        the tensors, on the CPU, and what was saved with them; None if the run does not go on, or the part is not there.

    Raises:
        InputError: the part was made with another config, or is damaged.
    """
    if not (resume and has_checkpoint(path)):
        return None
    tensors, about = load_checkpoint(path)
    check_config(path, about["config"], config, free)
    return tensors, about


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    path = folder / ".lock"
    lock = _lock(path)
    try:
        yield
    finally:
        with suppress(OSError):  # as when the folder was deleted
            path.unlink()
        if lock is not None:
            os.close(lock)


def _lock(path: Path) -> int | None:
    """Return an open file that this process alone has locked; None where the file system has no locks.

    Raises:
        InputError: another process has locked it, or the folder cannot be written.
        OSError: the system has no locks; it becomes a warning here.
    """
    while True:
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise InputError(
                f"cannot write to the output folder {path.parent}: {error.strerror}"
            ) from error
        try:
            if fcntl is None:
                raise OSError("this system has no locks")
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(file, 200).decode(errors="replace").strip() or "not known which"
            os.close(file)
            raise InputError(
                f"another run ({holder}) is writing to {path.parent}; wait for its end, or use another output folder"
            ) from None
        except OSError as error:
            os.close(file)
            warnings.warn(
                f"files in {path.parent} cannot be locked ({error}); see to it that no other run writes there",
                stacklevel=2,
            )
            return None
        try:
            mine = os.path.samestat(os.fstat(file), os.stat(path))
        except FileNotFoundError:
            mine = False
        if mine:
            with suppress(OSError):  # who holds it is good to know, and no more
                os.ftruncate(file, 0)
                os.write(file, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
            return file
        os.close(file)  # the run that held it has just ended, and deleted it
