"""Prompts that are typed, or that stand in a file.

.txt      one prompt a line
.csv      a column `prompt`, and perhaps a column `label`
.jsonl    one object a line, with the key `prompt`, and perhaps the key `label`
dataset:NAME, dataset:NAME:SPLIT    see `prompt_datasets`
"""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .._types import InputError
from .prompt_datasets import dataset_rows

__all__ = ["rows_of"]

LONGEST_FILE = 2**20
_READ = (".txt", ".csv", ".jsonl")
_FILES = (*_READ, ".json", ".yaml", ".yml", ".toml", ".md")


def rows_of(flag: str, text: str) -> list[tuple[str, str]]:
    """Return the prompt itself, or the prompts in the file that it names, each with its label or an empty text.

    Raises:
        InputError: The file is missing, is no file of prompts, or has a line without a printable prompt.
    """
    if text.startswith("dataset:"):
        found = dataset_rows(flag, text.removeprefix("dataset:"))
        return [_checked(f"{flag} {text}, row {number}", prompt, label) for number, prompt, label in found]
    try:
        path = Path(text)
        named = path.suffix.lower() in _FILES and " " not in text
        if not path.exists() or path.is_dir():
            if named:
                raise InputError(
                    f"{flag} {text}: there is no such file, and it does not look like a prompt"
                )
            return [(text, "")]
        if named and path.suffix.lower() not in _READ:
            raise InputError(
                f"{flag} {text}: prompts are read from files of the formats txt, csv and jsonl"
            )
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
        raise InputError(f"{flag} {text}: the file is not a text in UTF-8") from error
    except (OSError, ValueError):  # too long for a file's name, say
        return [(text, "")]
    reader = {".csv": _csv, ".jsonl": _jsonl}.get(path.suffix.lower(), _txt)
    try:
        rows = [(number, row.get("prompt"), row.get("label")) for number, row in reader(lines)]
    except (ValueError, RecursionError, csv.Error) as error:
        raise InputError(f"{flag} {text}, {error}") from error
    if not rows:
        raise InputError(f"{flag} {text}: the file holds no prompts")
    return [_checked(f"{flag} {text}, line {number}", prompt, label) for number, prompt, label in rows]


def _checked(where: str, prompt: Any, label: Any) -> tuple[str, str]:
    label = "" if label is None else label
    for name, value in {"prompt": prompt, "label": label}.items():
        if not isinstance(value, str) or not value.isprintable():
            raise InputError(f"{where}: the {name} must be a printable text, but is {value!r}")
    if not prompt.strip():
        raise InputError(f"{where}: the prompt is empty")
    return prompt.strip(), label.strip()


def _txt(lines: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    yield from ((number, {"prompt": line}) for number, line in enumerate(lines, 1) if line.strip())


def _csv(lines: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(lines, strict=True)
    if "prompt" not in (reader.fieldnames or ()):
        raise ValueError(f"line 1: there must be a column `prompt`, but the first line is {lines[:1]}")
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise ValueError(f"line {reader.reader.line_num}: {error}") from error
        if row is None:
            return
        yield reader.line_num, row


def _jsonl(lines: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"line {number} is not JSON: {error}") from error
            if not isinstance(row, dict):
                raise ValueError(f"line {number} must be an object with the key `prompt`")
            yield number, row
