"""How many graphs fit: the plan of `Checkpointed(budget=)`.

    held = states + max(k G + D, L),     k = floor((budget - states - D) / G), at most N - 1

with G the bytes of one denoiser call's graphs, measured in the first call (which stops there, if the graph outgrows
the budget and a smaller way is left), L those of the largest of them
(two where guidance is split, else one), and D those of the decoder's backward pass. Where L does not fit,
guidance is split into two evaluations with a graph each; where a half does not fit, the network's blocks are
recomputed one by one, and L is the blocks' inputs and the largest block's graph. A plan never changes the image: where
D does not fit, the budget is refused.
"""

import copy
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from .._types import InputError
from ..solvers.integrate import IVP
from .block_checkpointing import has_blocks
from .recompute import Blocks
from .saved_bytes import BudgetExceededError

__all__ = ["Budget", "by_blocks", "bytes_of", "free_memory", "parsed", "split"]


@dataclass(frozen=True)
class Budget:
    """Memory for what the backward pass holds.

    Args:
        total: bytes.
        states: bytes of the states that recomputation holds.
        decoder: bytes of the decoder's backward pass, on top of the kept graphs.
    """

    total: int
    states: int = 0
    decoder: int = 0

    def keep(self, calls: int, graph: int, largest: int) -> int:
        """k, the number of last calls that keep their graph; the first is never among them.

        Raises:
            BudgetExceededError: not one graph fits.
            InputError: the decoder does not fit.
        """
        if self.states + self.decoder > self.total:
            raise InputError(
                f"the decoder's backward pass needs {_shown(self.states + self.decoder)} with the states, and "
                f"the budget is {_shown(self.total)}: {_shown(self.states + self.decoder - self.total)} are "
                "missing. Use a smaller image or batch, raise the budget, or decode in tiles, which changes the image "
                "a little where they meet: pipe.vae.enable_tiling()"
            )
        if self.states + largest > self.total:
            raise BudgetExceededError(largest)
        return min(max(calls - 1, 0), (self.total - self.states - self.decoder) // max(graph, 1))

    def held(self, keep: int, graph: int, largest: int) -> int:
        """Bytes held at the peak of the backward pass with k graphs kept."""
        return self.states + max(keep * graph + self.decoder, largest)

    def refuse(self, graph: int) -> InputError:
        """The error that says what is missing."""
        return InputError(
            f"one graph of the denoiser needs {_shown(graph)}, with the states {_shown(self.states + graph)}, and "
            f"the budget is {_shown(self.total)}: {_shown(self.states + graph - self.total)} are missing. "
            "Guidance was split and blocks were recomputed one by one where that is possible: use a smaller batch "
            "or picture, or raise the budget"
        )


def split(ivp: IVP) -> IVP | None:
    """The same problem with guidance in two calls, each half the graph; None where it cannot be split.

    The copy shares all weights: only the switch is its own.
    """
    denoiser = ivp.flow.denoiser
    guided = any(name.startswith("negative_") for name in ivp.cond)
    if not guided or denoiser.split is not False or not denoiser.linear_guidance:
        return None
    half = copy.copy(denoiser)
    half.split = True
    return replace(ivp, flow=replace(ivp.flow, denoiser=half))


def by_blocks(ivp: IVP) -> IVP | None:
    """The same problem with the network's blocks recomputed one by one; None where it cannot be asked for them."""
    denoiser = ivp.flow.denoiser
    if not has_blocks(denoiser.network):
        return None
    smaller = copy.copy(denoiser)
    smaller.blocks = Blocks(list(denoiser.parameters()))
    return replace(ivp, flow=replace(ivp.flow, denoiser=smaller))


def bytes_of(size: int | str, device: torch.device) -> int:
    """Bytes of a size such as 1000, "500MB", "8GiB", or "auto": 0.8 of what is free on the device."""
    if size == "auto":
        free = free_memory(device)
        if free is None:
            raise InputError('this system does not tell its free memory; give a budget such as "8GiB"')
        return int(0.8 * free)
    return parsed(size)


def parsed(size: int | str) -> int:
    """Bytes of a size such as 1000, "500MB" or "8GiB"."""
    if isinstance(size, int) and size > 0:
        return size
    units = {"B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]I?B|B)\s*", str(size).upper())
    if not match:
        raise InputError(
            f'a budget is a positive number of bytes, a text such as "8GiB" or "auto", but is {size!r}'
        )
    return int(float(match[1]) * units[match[2]])


def free_memory(device: torch.device) -> int | None:
    """Bytes that can be had on a device; None where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:  # what is cached counts as free here, but not in the system's own figure of free pages
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def _shown(size: int) -> str:
    """A size to three digits."""
    for unit, worth in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if abs(size) >= worth:
            return f"{size / worth:.3g} {unit}"
    return f"{size} B"
