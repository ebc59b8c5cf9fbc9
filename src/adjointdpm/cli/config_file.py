"""YAML files with values of flags, read as if each value were typed.

A file is one mapping `flag: value` or `flag: [value, ...]`. Values are texts, as on the command line, and the flag's
own type reads them: `mixed_precision: no` is the word no and `learning_rate: 1e-3` a number, which YAML 1.1 would
make False and a text. The file is composed into nodes and never constructed, so that neither aliases nor tags
cost or run anything.
"""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from .._types import InputError

__all__ = ["read_config"]

MOST_BYTES = 2**18
_SCALARS = tuple(
    f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null", "timestamp")
)


def read_config(path: Path, flags: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a file, as texts, by the names of flags.

    Args:
        path: of the file.
        flags: the command's parameters, by name; see `flags.Flag`.

    Raises:
        InputError: the file cannot be read, is no such mapping, or names a flag that is not there.
    """
    root = _composed(path)
    if not isinstance(root, yaml.MappingNode):
        raise InputError(f"the config {path} must hold lines of the form `flag: value`")
    found: dict[str, Any] = {}
    for key, node in root.value:
        name = key.value if isinstance(key, yaml.ScalarNode) else "(not a word)"
        if name not in flags:
            near = difflib.get_close_matches(name, flags, 1, 0.0)
            raise InputError(f"the config {path} has an unknown key {name!r}; did you mean {near[0]!r}?")
        if name in found:
            raise InputError(f"the config {path} has the key {name!r} twice")
        found[name] = _value(f"{name!r} in the config {path}", node, flags[name])
    return {name: value for name, value in found.items() if value is not None}


def _composed(path: Path) -> Any:
    try:
        if path.exists() and not path.is_file():
            raise InputError(f"cannot read the config {path}: it is not an ordinary file")
        with open(path, "rb") as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise InputError(f"the config {path} has more than {MOST_BYTES} bytes; is it another file?")
        return yaml.compose(content.decode(), Loader=yaml.SafeLoader)
    except InputError:
        raise
    except (OSError, ValueError) as error:  # UnicodeDecodeError and null bytes in the name among the latter
        raise InputError(f"cannot read the config {path}: {error}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise InputError(f"the config {path} is not YAML: {error}") from error


def _value(where: str, node: Any, flag: Any) -> Any:
    """Return a flag's text, or a list of texts where the flag may be repeated; None leaves the default.

    Raises:
        InputError: the value is neither a plain one nor a list of plain ones, or is missing.
    """
    if isinstance(node, yaml.SequenceNode) and flag.many:
        texts = [_text(where, each) for each in node.value]
        if not texts or None in texts:
            raise InputError(f"{where} must hold at least one value, and no empty ones")
        return texts
    text = _text(where, node)
    if text is None:
        if flag.default not in (None, ()):  # among them MISSING, where a value is required
            raise InputError(f"{where} has no value")
        return None
    return [text] if flag.many else text


def _text(where: str, node: Any) -> str | None:
    if not isinstance(node, yaml.ScalarNode) or node.tag not in _SCALARS:
        raise InputError(
            f"{where} must be a plain value or, where the flag may be repeated, a list of them"
        )
    if "\0" in node.value:
        raise InputError(f"{where} holds a null character")
    empty = node.tag.endswith(":null") and node.style is None
    return None if empty else node.value
