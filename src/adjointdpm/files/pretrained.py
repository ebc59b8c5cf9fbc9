"""Models of diffusers and transformers from a folder or a hub, loaded whole or not at all.

Where a file lacks a weight, the loaders of both libraries draw it at random; where it holds one that the class does
not have, they leave it out; and both report it in a log only. Here each is an error that names the keys. Weights that
a class itself declares optional (tied weights, buffers that older releases saved) are not in those loaders' lists.
Only safetensors are read.
"""

import importlib
import json
import socket
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from .._types import AdjointDPMError, InputError

__all__ = ["first_of", "load_pretrained", "load_pretrained_pipeline", "local_folder", "quiet", "refusing"]


def load_pretrained(kind: Any, name: str | Path, **options: Any) -> Any:
    """Load a model whose every weight comes from its file.

    Args:
        kind: a class of diffusers or transformers, or one of transformers' Auto classes.
        name: a folder, or a model's name on a hub.
        options: arguments that are passed on to the class's `from_pretrained`.

    Returns:
        the model.

    Raises:
        InputError: nothing can be loaded from there, or weights are missing, not expected or of another size.
    """
    with refusing(kind.__name__, name), quiet():
        path = _found(kind.__name__, name)
        model, info = kind.from_pretrained(
            path, use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
        _check_keys(name, model, info)
        return model


def load_pretrained_pipeline(
    name: str | Path,
    dtype: torch.dtype = torch.float32,
    *,
    revision: str | None = None,
    variant: str | None = None,
) -> Any:
    """Load a pipeline of diffusers whose models have every weight from their files.

    Args:
        name: a folder, or a pipeline's name on a hub.
        dtype: the dtype of its models.
        revision: a branch, tag or commit on a hub; the hub's default if None.
        variant: the variant of the weight files, such as "fp16", for the models that have files of it.

    Returns:
        the pipeline, on the CPU.

    Raises:
        InputError: nothing can be loaded from there, weights are missing, not expected or of another size, a model
            has a loader that does not list its keys, a revision of a folder, or a variant that no model has.
    """
    import diffusers  # takes seconds
    from diffusers import DiffusionPipeline

    with refusing("pipeline", name), quiet():
        if revision is not None and Path(name).is_dir():
            raise InputError(f"revision={revision!r} is that of a model on a hub, but {name} is a folder")
        path = _found("pipeline", name, revision)
        if not Path(path).is_dir():
            path = DiffusionPipeline.download(
                str(path), use_safetensors=True, revision=revision, variant=variant
            )
        index = Path(path) / "model_index.json"
        if not index.is_file():
            raise InputError(f"{index} is missing; give the folder of a whole pipeline")
        if variant is not None and not any(_has_variant(each, variant) for each in Path(path).iterdir()):
            raise InputError(f"no model of {name} has weight files of the variant {variant!r}")
        listing = _read_json(index)
        parts = {
            part: load_pretrained(
                kind, folder, variant=variant if variant and _has_variant(folder, variant) else None
            )
            for part, listed in listing.items()
            for folder in [Path(path) / part]
            if isinstance(listed, list) and (kind := _module_class(*listed)) is not None
        }
        # The base class does not know which components of Wan are optional, and would load them a second time.
        own = getattr(diffusers, str(listing.get("_class_name")), DiffusionPipeline)
        pipe = own.from_pretrained(path, use_safetensors=True, **parts)
        for part, module in pipe.components.items():
            if isinstance(module, nn.Module) and module is not parts.get(part):
                raise InputError(
                    f"the keys of {part}, a {type(module).__name__}, cannot be compared with its file; load the "
                    "pipeline in Python and pass it to PipelineSampler or FlowSampler.from_pipeline"
                )
        return pipe.to(dtype)


def local_folder(what: str, name: str | Path, patterns: Sequence[str]) -> Path:
    """Return a folder as it is, or the local copy of some files of a model on a hub.

    Args:
        what: the kind of thing that is loaded, for messages.
        name: a folder, or a model's name on a hub.
        patterns: patterns of the names of files, such as "*.safetensors"; no others are downloaded.

    Returns:
        the folder; what is in it is not checked.

    Raises:
        InputError: there is no such folder, and no model of that name can be had from a hub.
    """
    from huggingface_hub import snapshot_download

    with refusing(what, name), quiet():
        found = _found(what, str(name), check=False)
        if isinstance(found, Path):
            return found
        return Path(snapshot_download(found, allow_patterns=list(patterns)))


@contextmanager
def quiet() -> Iterator[None]:
    """Switch off the progress bars, tables and warnings of diffusers' and transformers' loaders within a block.

    The progress bars of a hub's downloads stay. The settings are restored when the block ends.

    Yields:
        None.
    """
    from diffusers.utils import logging as diffusers_logging
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging as transformers_logging

    before = [
        (each, each.get_verbosity(), each.is_progress_bar_enabled())
        for each in (diffusers_logging, transformers_logging)
    ]
    hub_level = hub_logging.get_verbosity()
    hub_logging.set_verbosity_error()
    for each, _, _ in before:
        each.set_verbosity_error()
        each.disable_progress_bar()
    try:
        yield
    finally:
        hub_logging.set_verbosity(hub_level)
        for each, level, shown in before:
            each.set_verbosity(level)
            if shown:
                each.enable_progress_bar()


@contextmanager
def refusing(what: str, name: str | Path) -> Iterator[None]:
    """Convert any exception of another library's loader, raised within a block, to an `InputError` of one line.

    Args:
        what: the kind of thing that is loaded, for the message.
        name: the folder or the name on a hub, for the message.

    Yields:
        None.

    Raises:
        InputError: in place of any exception that is not this library's own.
        AdjointDPMError: as it was raised.
    """
    try:
        yield
    except AdjointDPMError:
        raise
    except Exception as error:  # they raise whatever a broken file leads to
        says = " ".join(str(error).split())[:200] or "no reason given"
        raise InputError(
            f"no {what} could be loaded from {str(name)!r}: {type(error).__name__}: {says}; give a folder or a "
            "hub's name with safetensors"
        ) from error


def first_of(keys: Iterable[str], most: int = 5) -> str:
    """Return the first keys in alphabetical order, and how many more there are, as text.

    Args:
        keys: names of weights.
        most: how many are written out.

    Returns:
        such as "a, b and 3 more".
    """
    first = sorted(keys)
    rest = f" and {len(first) - most} more" if len(first) > most else ""
    return ", ".join(first[:most]) + rest


def _has_variant(folder: Path, variant: str) -> bool:
    """Return whether a model's folder has weight files of a variant, such as model.fp16.safetensors."""
    return any(
        f".{variant}" in each.name.removesuffix(".safetensors") for each in folder.glob("*.safetensors")
    )


def _found(what: str, name: str | Path, revision: str | None = None, check: bool = True) -> str | Path:
    """Return a folder, after its files have been checked if asked for, or a name on a hub that can be reached.

    Raises:
        InputError: there is no such folder, a file in it is damaged, or no hub can be reached.
    """
    path = Path(name)
    if path.is_file():
        raise InputError(
            f"no {what} could be loaded from {name}, which is a file: give the folder it was saved in"
        )
    if not path.is_dir():
        if path.is_absolute() or len(path.parts) > 2 or str(name).startswith("."):
            raise InputError(f"no {what} could be loaded from {name}: there is no such folder")
        if not _offline():
            return name
        from huggingface_hub import snapshot_download

        try:
            path = Path(snapshot_download(str(name), revision=revision, local_files_only=True))
        except (OSError, ValueError) as error:
            raise InputError(
                f"no {what} could be loaded from {str(name)!r}: there is no such folder, no copy of a hub's model of "
                "that name, and no hub can be reached"
            ) from error
    if check:
        _check_files(path)
    return path


def _check_files(path: Path) -> None:
    """Check that the files of a folder are whole and are what their suffixes say.

    Raises:
        InputError: a file is cut or damaged, or there are pickled weights only.
    """
    for file in sorted(path.iterdir()):
        if file.suffix == ".json":
            _read_json(file)
        elif file.suffix == ".safetensors":
            try:
                with safe_open(str(file), "pt"):
                    pass
            except (SafetensorError, OSError) as error:
                raise InputError(
                    f"{file} is cut or damaged ({' '.join(str(error).split())}); get the file again"
                ) from error
    pickles = [
        file.name for file in path.iterdir() if file.suffix in (".bin", ".ckpt", ".pt", ".pth", ".pkl")
    ]
    if pickles and not list(path.glob("*.safetensors")):
        raise InputError(
            f"{path} holds its weights in pickled files only ({', '.join(sorted(pickles))}), which can run code when "
            "they are read; save them as safetensors"
        )


def _offline() -> bool:
    """Return whether no hub can be reached; its client would retry for a minute to find out."""
    from huggingface_hub import constants

    if getproxies():
        return False
    try:
        socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, None)
    except OSError:
        return True
    return False


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file} cannot be read as JSON: {error}; get the file again") from error


def _check_keys(name: str | Path, model: nn.Module, info: Any) -> None:
    """Check that the loader lists no keys, except buffers that only older releases saved.

    `info` has lists in some releases and sets in others; a key of another size is a triple in most releases and only
    the key in some.

    Raises:
        InputError: weights are missing, not expected or of another size.
    """
    buffers = dict(model.named_buffers())
    listed = {
        "missing": info["missing_keys"],
        "not expected": [key for key in info["unexpected_keys"] if key not in buffers],
        "of another size": [
            each if isinstance(each, str) else _sizes(*each) for each in info["mismatched_keys"]
        ],
    }
    message = [f"{what}: {first_of(keys)}" for what, keys in listed.items() if keys]
    if message or info["error_msgs"]:
        message += [" ".join(str(each).split())[:200] for each in info["error_msgs"]]
        raise InputError(
            f"the weights in {name} are not those of {type(model).__name__}; {'; '.join(message)}; they would be "
            "drawn at random or left out: use the file that belongs to its config.json, and releases of diffusers "
            "and transformers that can read it"
        )


def _sizes(key: str, found: Iterable[int], wanted: Iterable[int]) -> str:
    return f"{key} {tuple(found)} where {tuple(wanted)} is expected"


def _module_class(library: str | None, name: str | None) -> Any:
    """Return the class that an entry of model_index.json names, if it is a model whose loader lists its keys."""
    import diffusers
    from transformers import PreTrainedModel

    if library not in ("diffusers", "transformers") and not hasattr(diffusers.pipelines, str(library)):
        return None
    within = getattr(diffusers.pipelines, str(library), None) or importlib.import_module(str(library))
    kind = getattr(within, str(name), None)
    known = isinstance(kind, type) and issubclass(kind, (diffusers.ModelMixin, PreTrainedModel))
    return kind if known else None
