"""How many graphs fit into a memory budget: the plan of `Checkpointed(budget=)`.

    held = states + max(k G + D, L),     k = floor((budget - states - D) / G), at most N - 1

G    bytes of the graphs of one denoiser call (two graphs where guidance is split, else one), measured in the first
     call; that call stops early if its graph exceeds the budget and a smaller method is left
L    bytes of the largest of these graphs
D    bytes of the decoder's backward pass

Where L does not fit, guidance is split into two evaluations with a graph each. Where half of it does not fit, the
network's blocks are recomputed one by one, and L is the blocks' inputs and the largest block's graph. A plan never
changes the image: where D does not fit, the budget is refused.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

import torch

from .._types import InputError
from ..flow.denoisers import SplitGuidance
from ..solvers.integrate import IVP
from .block_checkpointing import has_blocks
from .evaluation import InBlocks
from .recompute import Blocks
from .saved_bytes import BudgetExceededError

__all__ = ["Budget", "by_blocks", "bytes_of", "free_memory", "parsed", "split"]


@dataclass(frozen=True)
class Budget:
    """The memory that the backward pass may hold.

    Args:
        total: the budget in bytes.
        states: bytes of the states that recomputation holds.
        decoder: bytes of the decoder's backward pass, besides the kept graphs.
    """

    total: int
    states: int = 0
    decoder: int = 0

    def keep(self, calls: int, graph: int, largest: int) -> int:
        """The number k of last calls that keep their graph; the first call never does.

        Args:
            calls: number of denoiser calls.
            graph: bytes of the graphs of one call.
            largest: bytes of the largest single graph.

        Returns:
            k, 0 to calls - 1.

        Raises:
            BudgetExceededError: not even one graph fits.
            InputError: the decoder does not fit.
        """
        if self.states + self.decoder > self.total:
            raise InputError(
                f"the decoder's backward pass needs {_as_text(self.states + self.decoder)} with the states, and "
                f"the budget is {_as_text(self.total)}: {_as_text(self.states + self.decoder - self.total)} are "
                "missing. Use a smaller image or batch, raise the budget, or decode in tiles, which changes the image "
                "a little where they meet: pipe.vae.enable_tiling()"
            )
        if self.states + largest > self.total:
            raise BudgetExceededError(largest)
        return min(max(calls - 1, 0), (self.total - self.states - self.decoder) // max(graph, 1))

    def held(self, keep: int, graph: int, largest: int) -> int:
        """Bytes held at the peak of the backward pass, states + max(k G + D, L).

        Args:
            keep: k, the number of calls whose graphs are kept.
            graph: G, bytes of the graphs of one call.
            largest: L, bytes of the largest single graph.

        Returns:
            the bytes.
        """
        return self.states + max(keep * graph + self.decoder, largest)

    def refuse(self, graph: int) -> InputError:
        """The error for a graph that does not fit; its message states the missing bytes."""
        return InputError(
            f"one graph of the denoiser needs {_as_text(graph)}, with the states {_as_text(self.states + graph)}, and "
            f"the budget is {_as_text(self.total)}: {_as_text(self.states + graph - self.total)} are missing. "
            "Guidance was split and blocks were recomputed one by one where that is possible: use a smaller batch "
            "or image, or raise the budget"
        )


def split(ivp: IVP) -> IVP | None:
    """The same problem with guidance in two calls, each with half the graph.

    Args:
        ivp: the problem.

    Returns:
        a copy with `SplitGuidance` around its denoiser; None if guidance cannot be split.
    """
    guided = any(name.startswith("negative_") for name in ivp.cond)
    return ivp.wrapped(SplitGuidance) if guided and ivp.flow.denoiser.splittable else None


def by_blocks(ivp: IVP) -> tuple[IVP, Blocks] | None:
    """The same problem with the network's blocks recomputed one by one.

    Args:
        ivp: the problem.

    Returns:
        a copy with `InBlocks` around each evaluation, and what recomputes the blocks; None if the network does not
        expose them.
    """
    if not has_blocks(ivp.flow.denoiser.network):
        return None
    blocks = Blocks(list(ivp.flow.denoiser.parameters()))
    return ivp.wrapped(lambda each: InBlocks(each, blocks)), blocks


def bytes_of(size: int | str, device: torch.device) -> int:
    """The bytes of a size, where "auto" is 0.8 of the free memory of a device.

    Args:
        size: a number of bytes, a text such as "500MB" or "8GiB", or "auto".
        device: the device.

    Returns:
        the bytes.

    Raises:
        InputError: the size cannot be read; or it is "auto", and the system does not report its free memory.
    """
    if size == "auto":
        free = free_memory(device)
        if free is None:
            raise InputError('this system does not report its free memory; give a budget such as "8GiB"')
        return int(0.8 * free)
    return parsed(size)


def parsed(size: int | str) -> int:
    """The bytes of a size.

    Args:
        size: a positive number of bytes, or a text such as "500MB" or "8GiB".

    Returns:
        the bytes.

    Raises:
        InputError: the size cannot be read.
    """
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
    """The free memory of a device, in bytes; None where the system does not report it."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:  # this figure counts cached pages as free, as the one below does not
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def _as_text(size: int) -> str:
    """A size as text, to three digits."""
    for unit, worth in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if abs(size) >= worth:
            return f"{size / worth:.3g} {unit}"
    return f"{size} B"
