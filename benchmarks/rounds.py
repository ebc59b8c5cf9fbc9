"""Timing contenders against each other in one run."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

__all__ = ["rounds"]


def rounds(runs: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds of each, over `repeats` rounds in which all take turns.

    In each turn a contender runs twice, and only the second run counts. What the run before it left to the allocator
    is worth a tenth of the time here, so a method would pay for the memory of its neighbour in the list.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            run()
            _finished()
            start = time.perf_counter()
            run()
            _finished()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(each) for name, each in seconds.items() if each}


def _finished() -> None:
    """Wait for a GPU's queue: a call returns before its kernels have run."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
