"""The one optimisation loop of all tasks.

    v_0                            the variables, as the task gives them
    g_k = sum_i grad l_i(v_k, k)   over the batch of step k, in parts, over processes; the mean if shared
    v_{k+1} = project(optimizer(v_k, prepare(clip(g_k))))
    result: the v_k of the lowest rank among k = 0 ... N, item by item if each item has its own row

How a task uses it: subclass `Task` with `variables` (named leaves), `items` (how many things there are to
optimise on) and `losses(step, items)`, then

    outcome = optimise(task, lambda leaves: torch.optim.Adam(leaves, lr=0.1), Loop(steps=100, folder=path))

`losses` must be a function of the variables, the step and the items: draw with `seeds.key(seed, step, item)`,
and keep no state. Then a run that is killed and resumed, on a CPU, ends in the same bits, and one on several
processes in the same result to rounding. When `optimise` returns, the variables hold the best iterate.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from tqdm import tqdm

from .._types import AdjointDPMError, InputError
from .batch import Batch, forked
from .checkpoint import SavingError, check_config, load_checkpoint, save_checkpoint
from .processes import Processes
from .seeds import key
from .signals import uninterrupted
from .state import State
from .task import Loop, Losses, Task

__all__ = ["InterruptedRunError", "Loop", "Losses", "Outcome", "StoppedRunError", "Task", "optimise"]


@dataclass(frozen=True, eq=False)
class Outcome:
    """What the loop found.

    best        the variables of the best iterate, by name (copies)
    best_step   (items,) or (1,), when that was
    best_loss   (items,) or (1,), its loss; the batch's mean where the variables are shared
    losses      mean loss of each step that was taken, and of the last iterate
    steps       how many steps were taken
    seconds     of this call
    """

    best: dict[str, Tensor]
    best_step: Tensor
    best_loss: Tensor
    losses: list[float]
    steps: int
    seconds: float


class InterruptedRunError(AdjointDPMError):
    """Ctrl-C; the state is saved, and the message says where and how to go on."""


class StoppedRunError(AdjointDPMError):
    """A metric failed at some step; `outcome` is the best until then, and the message says where it lies."""

    def __init__(self, message: str, outcome: Outcome) -> None:
        super().__init__(message)
        self.outcome = outcome


def optimise(task: Task, optimizer: Callable[[list[Tensor]], Optimizer], loop: Loop) -> Outcome:
    """Minimise a task's losses; see the head of this module.

    Args:
        task: what is optimised.
        optimizer: makes one of torch's optimizers for a list of leaves. Resumption rebuilds it, and gives it
            back its state.
        loop: how.
    Raises:
        InputError: a variable that is no leaf or that no loss depends on, a checkpoint of another run, a
            full disk.
        StoppedRunError: a loss raised or was not finite after the first step.
        InterruptedRunError: Ctrl-C, with a folder to save to; without one, KeyboardInterrupt.
    """
    return _Run(task, optimizer, loop).outcome()


class _Run:
    def __init__(self, task: Task, optimizer: Callable[[list[Tensor]], Optimizer], loop: Loop) -> None:
        self.task, self.loop, self.processes = task, loop, Processes.here()
        for name, leaf in task.variables.items():
            if not leaf.is_leaf or not leaf.is_floating_point():
                raise InputError(f"the variable {name!r} must be a leaf of floating point")
            leaf.requires_grad_()
        self.leaves = list(task.variables.values())
        self.optimizer = optimizer(self.leaves)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.state = State.fresh(task.variables, task.items if task.per_item else 1)
        self.batch = Batch(task, loop, self.processes)
        self.start = time.perf_counter()
        self.between = False  # in the middle of a step: nothing that is worth saving
        path = loop.checkpoint
        if loop.resume and path is not None and path.exists():
            tensors, about = load_checkpoint(path)
            check_config(path, about["config"], loop.config)
            self.state.restore(tensors, about, task.variables, self.optimizer)

    def outcome(self) -> Outcome:
        loop, state = self.loop, self.state
        if not state.finished:
            bar = tqdm(
                total=loop.steps,
                initial=state.step,
                desc=type(self.task).__name__.lower(),
                ncols=90,
                disable=loop.quiet or not self.processes.first,
            )
            with bar:
                while state.step < loop.steps and not self._enough():
                    self._guarded(lambda: self._step(bar))
                self._guarded(self._last)
        with torch.no_grad():
            for name, leaf in self.task.variables.items():
                leaf.copy_(state.best[name])
                leaf.grad = None
        return self._found()

    def _found(self) -> Outcome:
        state = self.state
        best = {name: tensor.clone() for name, tensor in state.best.items()}
        seconds = time.perf_counter() - self.start
        return Outcome(best, state.best_step, state.best_loss, list(state.losses), state.step, seconds)

    def _guarded(self, work: Callable[[], None]) -> None:
        """Run a step; whatever ends it, the state before it is saved."""
        step, path = self.state.step, self.loop.checkpoint
        try:
            work()
        except KeyboardInterrupt as error:
            if path is None or self.between:
                raise
            self._save()
            raise InterruptedRunError(
                f"interrupted at step {self.state.step} of {self.loop.steps}; saved in {path}: run the same "
                "command with --resume (resume=True) to go on"
            ) from error
        except Exception as error:
            if step == 0 or self.between or isinstance(error, SavingError):
                raise
            self._save()
            found = self._found()
            where = f", kept in {path}" if path is not None else ", in this error's outcome"
            when = sorted({int(each) for each in found.best_step})
            steps = f"step {when[0]}" if len(when) == 1 else f"steps {when[0]} to {when[-1]}"
            raise StoppedRunError(
                f"stopped at step {step} of {self.loop.steps}: {type(error).__name__}: {error}. The best so far "
                f"is of {steps} with a loss of {float(found.best_loss.mean()):.4g}{where}",
                found,
            ) from error

    def _step(self, bar: Any) -> None:
        loop, state = self.loop, self.state
        values, batch = self.batch.losses(self.state.step, differentiate=True)
        valid = self._validated()
        with uninterrupted(), torch.no_grad():
            self.between = True
            self._note(values, batch, valid)
            if loop.max_grad_norm is not None:
                torch.nn.utils.clip_grad_norm_(self.leaves, loop.max_grad_norm)
            for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
                group["lr"] = rate * loop.rate(state.step)
            self.task.prepare()
            self.optimizer.step()
            self.task.project()
            state.step += 1
            self.between = False
            if loop.checkpointing_steps and state.step % loop.checkpointing_steps == 0:
                self._save()
        bar.set_postfix(loss=f"{state.losses[-1]:.4g}")
        bar.update()
        if loop.report is not None and self.processes.first:
            loop.report(state.step, {"loss": state.losses[-1]})

    def _last(self) -> None:
        """Score the iterate after the last step, and finish."""
        scored = None
        if not self._enough():
            values, batch = self.batch.losses(self.state.step, differentiate=False)
            scored = values, batch, self._validated(last=True)
        with uninterrupted(), torch.no_grad():
            if scored is not None:
                self._note(*scored)
            self.state.finished = True
            self._save()

    def _enough(self) -> bool:
        """Whether patience or the aim says so."""
        loop, state = self.loop, self.state
        aim = loop.stop_at is not None and bool((state.best_rank <= loop.stop_at).all())
        return aim or (loop.patience is not None and state.stale >= loop.patience)

    def _validated(self, last: bool = False) -> float | None:
        every = self.loop.validation_steps
        if not every or (self.state.step % every and not last):
            return None
        with forked(), torch.no_grad():
            torch.manual_seed(key(self.loop.seed, "validation"))
            return float(self.task.validate(self.state.step))

    def _note(self, values: Losses, batch: list[int], valid: float | None) -> None:
        """Remember the step's losses, and the iterate where it is the best."""
        losses, rank = values.values, values.rank
        mean = float(losses.mean())
        if self.task.per_item:
            ranks = losses if rank is None else rank
            self.state.note(self.task.variables, mean, losses, ranks, batch)
        elif not self.loop.validation_steps or valid is not None:
            mine = float((losses if rank is None else rank).mean()) if valid is None else valid
            one = losses.new_tensor([mine])
            self.state.note(self.task.variables, mean, losses.mean().reshape(1), one, None)
        else:
            self.state.losses.append(mean)

    def _save(self) -> None:
        path = self.loop.checkpoint
        if path is None or not self.processes.first:
            return
        tensors, about = self.state.packed(self.task.variables, self.optimizer)
        save_checkpoint(path, tensors, {**about, "config": dict(self.loop.config)})
