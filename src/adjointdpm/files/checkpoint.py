"""Checkpoints: one safetensors file each, whole or not there at all, and the one before it to fall back on.

    checkpoint.safetensors             the newest: tensors by name, and JSON as metadata
    checkpoint.previous.safetensors    the one before it

The metadata holds a SHA-256 of the whole file, written with zeros in the place of the sum itself, so that a bit that
flips anywhere, in a tensor, a name or the metadata, is found when the file is read. The new file is written beside its
place; then the newest is renamed to be the one before, and the new one to be the newest. At no moment is there neither.
"""

import hashlib
import json
import os
import re
import struct
import warnings
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from .._types import InputError
from .atomic_write import SavingError, write_file

__all__ = [
    "SavingError",
    "check_config",
    "has_checkpoint",
    "load_checkpoint",
    "plain",
    "previous",
    "save_checkpoint",
    "write_file",
]

_FORMAT = "2"  # 1 had no checksum
_ZEROS = "0" * 64


def previous(path: Path) -> Path:
    """Return the path of the checkpoint before the newest.

    Args:
        path: the path of the newest checkpoint.

    Returns:
        the path beside it, with ".previous" before its suffix.

    Examples:
        >>> from pathlib import Path
        >>> from adjointdpm.files.checkpoint import previous
        >>> previous(Path("checkpoint.safetensors")).name
        'checkpoint.previous.safetensors'
    """
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def has_checkpoint(path: Path) -> bool:
    """Return whether there is a checkpoint to resume from.

    Args:
        path: the path of the newest checkpoint.

    Returns:
        whether it or the one before it exists; neither is read.
    """
    return path.exists() or previous(path).exists()


def save_checkpoint(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write a checkpoint whole or not at all; the newest one becomes the one before it.

    Args:
        path: the file, usually `checkpoint.safetensors`; its folder must exist.
        tensors: the tensors by name, on any device.
        about: values that JSON can represent, such as the step and the config.

    Raises:
        SavingError: the file cannot be written; earlier checkpoints are intact.

    Examples:
        >>> import pathlib, tempfile
        >>> import torch
        >>> from adjointdpm.files.checkpoint import load_checkpoint, save_checkpoint
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = pathlib.Path(folder) / "checkpoint.safetensors"
        ...     save_checkpoint(file, {"noise": torch.ones(2)}, {"step": 3})
        ...     tensors, about = load_checkpoint(file)
        >>> tensors["noise"].tolist(), about
        ([1.0, 1.0], {'step': 3})
    """
    on_cpu = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    metadata = {"format": _FORMAT, "checksum": _ZEROS, "about": json.dumps(dict(about))}
    content = bytearray(save(on_cpu, metadata))
    where = content.index(f'"checksum":"{_ZEROS}"'.encode()) + len('"checksum":"')
    content[where : where + 64] = hashlib.sha256(content).hexdigest().encode()

    def keep() -> None:
        if _whole(path):  # a damaged file must not push out a whole one
            os.replace(path, previous(path))

    write_file(path, content, keep)


def load_checkpoint(
    path: Path, check: Callable[[Mapping[str, Tensor], Mapping[str, Any]], None] | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a checkpoint of `save_checkpoint`; the one before it, with a warning, if the newest is damaged.

    Args:
        path: the path of the newest checkpoint.
        check: a function of the tensors and of `about` that raises ValueError where they cannot be those of the
            caller's checkpoint, which then counts as damaged.

    Returns:
        the tensors by name, on the CPU, and `about`.

    Raises:
        InputError: there is no such file, or both files are damaged or are not checkpoints of this format.
    """
    damage: dict[Path, str] = {}
    for each in (path, previous(path)):
        if not each.exists():
            continue
        try:
            tensors, about = _read(each)
            if check is not None:
                check(tensors, about)
        except (OSError, ValueError) as error:
            damage[each] = getattr(error, "strerror", None) or str(error)
            continue
        if damage:
            warnings.warn(
                f"the checkpoint {path} is damaged ({damage[path]}); going on from the one before it, {each}",
                stacklevel=2,
            )
        return tensors, about
    if not damage:
        raise InputError(f"there is no checkpoint {path} to resume from; run without resume")
    what = "; ".join(
        f"{each} is not a checkpoint of a task, or is damaged ({why})" for each, why in damage.items()
    )
    raise InputError(f"{what}. Delete the folder {path.parent} to start anew, or use another output folder")


def check_config(
    path: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any], free: Collection[str] = ()
) -> None:
    """Check that a checkpoint belongs to a run with the same settings.

    Args:
        path: the path of the checkpoint, or of the settings beside it, for the message.
        theirs: the settings with which the checkpoint was made.
        ours: the settings of this run.
        free: names of settings that may differ.

    Raises:
        InputError: a setting differs; the message names it and both values.
    """
    ours, theirs = plain(ours), plain(theirs)
    for key in sorted({*theirs, *ours} - set(free)):
        if json.dumps(theirs.get(key)) != json.dumps(ours.get(key)):  # as text, where NaN is NaN
            raise InputError(
                f"{path} was made with {key} = {theirs.get(key)!r}, but this run has "
                f"{ours.get(key)!r}; resume with the same settings, or use another output folder"
            )


def plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config as a file holds it: tuples become lists, and addresses of objects are removed.

    Args:
        config: settings by name.

    Returns:
        the settings, made of what JSON can represent.

    Raises:
        InputError: JSON cannot represent a value.
    """
    try:
        return json.loads(re.sub(r" at 0x[0-9a-f]+", "", json.dumps(dict(config))))
    except (TypeError, ValueError) as error:
        raise InputError(f"the config of a run must be made of what JSON knows, but {error}") from error


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return a file's contents, verified.

    Raises:
        ValueError: the file is damaged, or is no checkpoint; the message says why.
    """
    content = path.read_bytes()
    _verify(content)
    try:
        tensors = load(content)
        about = json.loads(_metadata(content)["about"])
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"its contents cannot be read: {error}") from error
    if not isinstance(about, dict):
        raise ValueError("it does not say what it holds")
    return tensors, about


def _whole(path: Path) -> bool:
    """Return whether a file exists and is undamaged."""
    try:
        _verify(path.read_bytes())
    except (OSError, ValueError):
        return False
    return True


def _metadata(content: bytes) -> dict[str, Any]:
    (length,) = struct.unpack_from("<Q", content)
    header = json.loads(content[8 : 8 + length])
    return header["__metadata__"]


def _verify(content: bytes) -> None:
    """Compare a file's checksum with the one that is written in it.

    Raises:
        ValueError: it is another one, or there is none.
    """
    try:
        metadata = _metadata(content)
        kept, version = metadata.get("checksum"), metadata.get("format")
        where = content.index(f'"checksum":"{kept}"'.encode()) + len('"checksum":"')
    except (struct.error, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError("it has no checksum") from error
    sum_ = hashlib.sha256(content[:where])
    sum_.update(_ZEROS.encode())
    sum_.update(memoryview(content)[where + 64 :])
    if sum_.hexdigest() != kept:
        raise ValueError("its checksum does not fit its contents")
    if version != _FORMAT:
        raise ValueError(f"its format is {version}, and this version of the library reads {_FORMAT}")
