"""Several processes as one: each computes its part of a batch, sums make it whole.

Started by `torchrun --nproc_per_node N` (or `accelerate launch`), which sets RANK and WORLD_SIZE.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["Processes"]


@dataclass(frozen=True)
class Processes:
    """Which of how many processes this is.

    Args:
        rank: 0 <= rank < world; rank 0 writes files and shows progress.
        world: number of processes.
    """

    rank: int = 0
    world: int = 1

    @classmethod
    def here(cls) -> "Processes":
        """Those of the launcher that started this process, joined if they are not yet."""
        if not dist.is_available():
            return cls()
        if not dist.is_initialized():
            if int(os.environ.get("WORLD_SIZE", "1")) == 1:
                return cls()
            dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def part(self, items: Sequence[int]) -> list[int]:
        """This process's share of some items."""
        return list(items[self.rank :: self.world])

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over the processes, the same bits in all of them."""
        if self.world > 1:
            for tensor in tensors:
                dist.all_reduce(tensor)
