"""Several processes as one: each computes its part of a batch, sums make it whole.

Started by `torchrun --nproc_per_node N` (or `accelerate launch`), which sets RANK and WORLD_SIZE.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from .._types import AdjointDPMError, InputError

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
        """Return the launcher's processes, joined if they are not yet, each with a GPU of its own.

        Raises:
            InputError: the launcher's variables in the environment do not describe processes that can be joined.
        """
        if not dist.is_available():
            return cls()
        if not dist.is_initialized():
            world, local = (os.environ.get(name, "") for name in ("WORLD_SIZE", "LOCAL_RANK"))
            if world in ("", "1"):
                return cls()
            gpus = torch.cuda.device_count()
            if gpus and local.isdecimal() and int(local) < gpus:
                torch.cuda.set_device(int(local))  # a GPU for each process, also in NCCL
            try:
                dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo")
            except (ValueError, RuntimeError) as error:
                says = " ".join(str(error).split())[:200]
                raise InputError(
                    f"WORLD_SIZE is {world!r}, but the processes cannot be joined ({says}); start them with torchrun"
                ) from error
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def part(self, items: Sequence[int]) -> list[int]:
        """Return this process's share of some items."""
        return list(items[self.rank :: self.world])

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over the processes, the same bits in all of them.

        Raises:
            AdjointDPMError: another process has ended or cannot be reached.
        """
        if self.world == 1:
            return
        try:
            for tensor in tensors:
                dist.all_reduce(tensor)
        except RuntimeError as error:
            says = " ".join(str(error).split())[:200]
            raise AdjointDPMError(
                f"process {self.rank} of {self.world} waited for another one, which has ended or cannot be reached "
                f"({says}); run the same command with --resume to go on from the last checkpoint"
            ) from error
