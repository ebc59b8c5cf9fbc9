"""Checkpoints: one safetensors file each, whole or not there at all, with JSON as its metadata.

The file is written beside its place, flushed to the disk and renamed. A kill, or a full disk, at any moment
leaves the checkpoint before it untouched.
"""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .._types import InputError

__all__ = ["SavingError", "check_config", "load_checkpoint", "save_checkpoint", "write_file"]


class SavingError(InputError):
    """A file could not be written; what was there before is intact."""


def write_file(path: Path, content: bytes) -> None:
    """Write a whole file or none.

    Raises:
        SavingError: the disk is full or the folder cannot be written; what was there before is still there.
    """
    beside = path.with_name(f".{path.name}.part")  # of a fixed name: a kill leaves at most one
    try:
        with open(beside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        kept = f"; the earlier {path.name} is intact" if path.exists() else ""
        raise SavingError(
            f"cannot write {path}: {error.strerror}{kept}. Free some space and run the command again"
        ) from error


def save_checkpoint(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write tensors by name, and what JSON can say about them.

    Raises:
        SavingError: it cannot be written; an earlier checkpoint is intact.
    """
    plain = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    write_file(path, save(plain, {"about": json.dumps(dict(about))}))


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `save_checkpoint` wrote.

    Raises:
        InputError: there is no such file, or it is not one of ours.
    """
    try:
        with safe_open(str(path), "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, no mapping
            return tensors, json.loads((file.metadata() or {})["about"])
    except FileNotFoundError as error:
        raise InputError(f"there is no checkpoint {path} to resume from; run without resume") from error
    except (SafetensorError, KeyError, OSError, ValueError) as error:
        raise InputError(f"{path} is not a checkpoint of a task, or is damaged; delete it") from error


def check_config(path: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Refuse to go on from a checkpoint of another run.

    Raises:
        InputError: a setting differs; the message names it and both values.
    """
    ours, theirs = _plain(ours), _plain(theirs)
    for key in sorted({*theirs, *ours}):
        if theirs.get(key) != ours.get(key):
            raise InputError(
                f"the checkpoint {path} was made with {key} = {theirs.get(key)!r}, but this run has "
                f"{ours.get(key)!r}; resume with the same settings, or use another output folder"
            )


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """As a file has it: tuples are lists; and without addresses, which are another process's own."""
    return json.loads(re.sub(r" at 0x[0-9a-f]+", "", json.dumps(dict(config))))
