"""Tensors that are made once and kept in shards: latents for the diffusion, pictures for the classifiers."""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from checkpoint import process
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

__all__ = ["cached"]

SHARD = 4096  # rows in a file
PART = 64  # rows made at once


@torch.no_grad()
def cached(folder: Path, count: int, make: Callable[[range], dict[str, Tensor]]) -> dict[str, Tensor]:
    """What `make` gives for rows 0 to `count`, from `folder` where it is there already.

    The processes of a run share the work; a shard is written aside and renamed, so one that is there is whole.
    """
    number, processes = process()
    folder.mkdir(parents=True, exist_ok=True)
    shards = [range(start, min(count, start + SHARD)) for start in range(0, count, SHARD)]
    paths = [folder / f"{rows.start:06d}-{rows.stop:06d}.safetensors" for rows in shards]
    for k, (rows, path) in enumerate(
        zip(tqdm(shards, desc=folder.name, disable=number > 0), paths, strict=True)
    ):
        if k % processes != number or path.exists():
            continue
        parts = [make(rows[start : start + PART]) for start in range(0, len(rows), PART)]
        aside = path.with_suffix(".partial")
        save_file(_joined(parts), aside)
        aside.replace(path)
    if processes > 1:
        dist.barrier()
    return _joined([load_file(path) for path in paths])


def _joined(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
