"""Files on disk: whole or not there at all.

A file is written beside its place, flushed to the disk and renamed. A kill, a full disk or a limit at any moment
leaves what was there before untouched, and no half file under the name that others read.
"""

import errno
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from .._types import InputError

__all__ = ["SavingError", "whole_files", "write_file"]

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class SavingError(InputError):
    """A file could not be written; an earlier file of that name is intact."""


def write_file(
    path: str | Path, content: bytes | bytearray, before: Callable[[], object] | None = None
) -> None:
    """Write a file whole or not at all: beside its place first, then flushed to the disk and renamed.

    Args:
        path: the file; its folder must exist.
        content: the file's whole content.
        before: called when the new content is on the disk, just before it replaces the old.

    Raises:
        SavingError: the disk is full or the folder cannot be written; an earlier file is intact.

    Examples:
        >>> import tempfile, pathlib
        >>> from adjointdpm.files.atomic_write import write_file
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = pathlib.Path(folder) / "values.txt"
        ...     write_file(file, b"1 2 3")
        ...     file.read_text()
        '1 2 3'
    """
    path = Path(path)
    beside = path.with_name(f".{path.name}.part")  # of a fixed name: a kill leaves at most one
    try:
        try:
            with open(beside, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            if before is not None:
                before()
            os.replace(beside, path)
        except BaseException:
            with suppress(OSError):  # the folder may be gone, or be read-only
                beside.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise SavingError(_failed(path, error)) from error


@contextmanager
def whole_files(folder: str | Path) -> Iterator[Path]:
    """Give another library a folder to write to, and move its files to their place when the block ends.

    If the block raises an error, nothing is moved. Each file is replaced whole, but a kill between two moves leaves
    some files new and others old.

    Args:
        folder: the files' final folder; it is made if it does not exist. Files of other names in it stay.

    Yields:
        an empty folder inside the final one.

    Raises:
        SavingError: the disk is full or the folder cannot be written; earlier files are intact.
    """
    folder = Path(folder)
    beside = folder / ".files.part"
    try:
        try:
            shutil.rmtree(beside, ignore_errors=True)  # of a killed run
            beside.mkdir(parents=True)
            yield beside
            files = [path for path in beside.rglob("*") if path.is_file()]
            for path in files:
                with open(path, "rb+") as file:
                    os.fsync(file.fileno())
            for path in files:
                place = folder / path.relative_to(beside)
                place.parent.mkdir(parents=True, exist_ok=True)
                os.replace(path, place)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk as an error of its own
        raise SavingError(_failed(folder, error)) from error


def _failed(path: Path, error: Exception) -> str:
    number, says = getattr(error, "errno", None), getattr(error, "strerror", None) or str(error)
    if found := re.search(r"\(os error (\d+)\)", says):  # as safetensors reports what the system says
        number = int(found[1])
        says = os.strerror(number)
    kept = f"; the earlier {path.name} is intact" if os.path.isfile(path) else ""
    todo = (
        "free some space"
        if number in _FULL
        else "see to it that the folder can be written to, or use another"
    )
    return f"cannot write {path}: {says}{kept}. To go on, {todo}, and run the command again"
