"""One step's losses and gradient: over the batch, in parts, over processes.

.grad = sum over parts and processes of grad l_i      (the mean over the batch, where variables are shared)
"""

import torch
from torch import Tensor

from .._types import AdjointDPMError, InputError, NonFiniteError
from .distributed import Processes
from .seeds import epoch_batch, forked
from .task import LoopSettings, Losses, Task

__all__ = ["GradientStep"]


class GradientStep:
    """Makes each step's losses and gradient."""

    def __init__(self, task: Task, loop: LoopSettings, processes: Processes) -> None:
        self.task, self.loop, self.processes = task, loop, processes
        self.leaves = list(task.variables.values())

    def losses(self, step: int, differentiate: bool, active: Tensor) -> tuple[Losses, list[int]]:
        """Return the batch's losses, with the variables' `.grad` if they are to be differentiated.

        Args:
            step: the number of the step.
            differentiate: whether the gradient is made.
            active: (items,) of bool, which items may be in the batch; of shared variables all are, whatever it holds.

        Raises:
            AdjointDPMError: another process failed.
            InputError: a loss ended the program, or does not depend on a variable.
        """
        loop, task = self.loop, self.task
        items: list[int] = active.nonzero()[:, 0].tolist() if task.per_item else list(range(task.items))
        batch = [items[i] for i in epoch_batch(len(items), loop.batch_size or len(items), step, loop.seed)]
        where = {item: place for place, item in enumerate(batch)}
        mine = self.processes.part(batch)
        size = -(-len(mine) // loop.accumulation)
        for leaf in self.leaves:
            leaf.grad = torch.zeros_like(leaf) if differentiate else None
        # In float64: losses of all dtypes fit, and sums of zeros and a value are that value.
        sums = torch.zeros(3, len(batch), dtype=torch.float64, device=self.leaves[0].device)
        used = torch.zeros(len(self.leaves) + 1, device=self.leaves[0].device)
        failure: Exception | None = None
        try:
            for first in range(0, len(mine), max(1, size)):
                part = mine[first : first + size]
                values, rank, fallen = self._part(step, part, len(batch), differentiate, used)
                places = [where[item] for item in part]
                sums[0, places] = values.to(sums)
                sums[1, places] = (values if rank is None else rank).to(sums)
                if fallen is not None:
                    sums[2, places] = fallen.to(sums)
        except SystemExit as error:
            failure, used[-1] = InputError(f"the loss ended the program: exit({error.code!r})"), 1
        except Exception as error:
            failure, used[-1] = error, 1
        if failure is not None and task.joint:  # the others wait for this process inside of a call
            raise failure
        self.processes.sum_([used])  # so that no process waits for one that has failed
        if failure is not None:
            raise failure
        if used[-1]:
            raise AdjointDPMError("another process failed in this step; its message says why")
        idle = [n for n, u in zip(task.variables, used, strict=False) if not u]
        if differentiate and idle:
            raise InputError(f"no loss depends on the variable {idle[0]!r}, so it cannot be optimized")
        gradients = [leaf.grad for leaf in self.leaves if leaf.grad is not None]
        self.processes.sum_([sums, *gradients])
        return Losses(sums[0], sums[1], sums[2] > 0), batch

    def _part(self, step: int, part: list[int], batch: int, differentiate: bool, used: Tensor) -> Losses:
        """Return losses of some items; their gradients are added to `.grad`.

        Raises:
            InputError: the losses are not one an item.
            NonFiniteError: a loss is not finite.
        """
        task = self.task
        # Dropout and some metrics draw from the global generators.
        with forked(self.loop.seed, step, part[0]), torch.set_grad_enabled(differentiate):
            values, rank, fallen = task.losses(step, part)
            if values.shape != (len(part),):
                raise InputError(
                    f"losses must be one a item, here ({len(part)},), but are {tuple(values.shape)}"
                )
            if not bool(torch.isfinite(values).all()):
                raise NonFiniteError(f"the loss is {values.detach().tolist()}, which is not finite")
            if differentiate:
                total = values.sum() if task.per_item else values.sum() / batch
                found = torch.autograd.grad(total, self.leaves, allow_unused=True)
                for i, (leaf, gradient) in enumerate(zip(self.leaves, found, strict=True)):
                    if gradient is not None and leaf.grad is not None:
                        leaf.grad += gradient
                        used[i] = 1
        return Losses(values.detach(), None if rank is None else rank.detach(), fallen)
