"""Prompts of a dataset that the package `datasets` loads: dataset:NAME, or dataset:NAME:SPLIT.

NAME is a folder or a name on a hub; the split is `train` where none is given. The columns are `prompt` and perhaps
`label`.
"""

from typing import Any

from .._types import InputError

__all__ = ["dataset_rows"]

MOST = 100_000


def dataset_rows(flag: str, text: str) -> list[tuple[int, Any, Any]]:
    """Return the number, prompt and label of every row, the label None where there is no such column.

    Args:
        flag: the flag, for messages.
        text: what stands after "dataset:".

    Raises:
        InputError: `datasets` is not installed, there is no such dataset or split, it has no column `prompt`, or too
            many rows.
    """
    where = f"{flag} dataset:{text}"
    name, _, split = text.partition(":")
    if not name:
        raise InputError(f"{where}: write dataset:NAME or dataset:NAME:SPLIT")
    try:
        from datasets import (  # pyright: ignore[reportMissingImports]
            load_dataset,  # pyright: ignore[reportUnknownVariableType]
        )
    except ImportError as error:
        raise InputError(
            f"{where}: reading a dataset needs the package datasets: pip install datasets; or write its prompts into a "
            "file: txt, csv or jsonl"
        ) from error
    try:
        found: Any = load_dataset(name, split=split or "train")
    except Exception as error:  # it has many, of its own and of what it is made of
        raise InputError(f"{where}: cannot be loaded: {' '.join(str(error).split())[:300]}") from error
    columns = list(found.column_names)
    if "prompt" not in columns:
        raise InputError(
            f"{where}: there must be a column `prompt`, but the columns are {', '.join(columns)}; rename one"
        )
    if not 0 < len(found) <= MOST:
        raise InputError(
            f"{where}: it has {len(found)} rows; 1 to {MOST} are read, so choose another split"
        )
    labels = found["label"] if "label" in columns else [None] * len(found)
    return [
        (i, prompt, label) for i, (prompt, label) in enumerate(zip(found["prompt"], labels, strict=True), 1)
    ]
