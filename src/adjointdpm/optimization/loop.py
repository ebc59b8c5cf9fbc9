"""The one optimization loop of all tasks.

    v_0                            the variables, as the task gives them
    g_k = sum_i grad l_i(v_k, k)   over the batch of step k, in parts, over processes; the mean if shared
    v_{k+1} = project(optimizer(v_k, prepare(clip(g_k))))
    result: the v_k of the lowest rank among k = 0 ... N, item by item if each item has its own row

How a task uses it: subclass `Task` with `variables` (named leaves), `items` (how many things there are to
optimize on) and `losses(step, items)`, then

    outcome = optimize(task, lambda leaves: torch.optim.Adam(leaves, lr=0.1), LoopSettings(steps=100, folder=path))

An item with a row of its own may be given up on the way (`Task.going_on`): it is evaluated no more and keeps its best.

`losses` must be a function of the variables, the step and the items: draw with `seeds.key(seed, step, item)`,
and keep no state. Then a run that is killed and resumed, on a CPU, ends in the same bits, and one on several
processes in the same result to rounding. When `optimize` returns, the variables hold the best iterate.

A run that is resumed may have more steps than before. With a constant rate it ends as one run of all of them would; a
rate that falls over the N steps is that of the new N from there on, and a warning says so.
"""

import logging
import math
import re
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from .._types import AdjointDPMError, InputError, NonFiniteError
from ..files.atomic_write import SavingError
from ..files.checkpoint import check_config, has_checkpoint, load_checkpoint, plain, save_checkpoint
from .distributed import Processes
from .gradient_step import GradientStep
from .holding import holding
from .progress import progress, size
from .run_folder import run_folder
from .seeds import forked
from .signals import Interrupted, ending, held, stop_once
from .state import LoopState, check
from .task import LoopSettings, Losses, RunOptions, Task

__all__ = [
    "InterruptedRunError",
    "LoopSettings",
    "Losses",
    "Outcome",
    "RunOptions",
    "StoppedRunError",
    "Task",
    "optimize",
]


logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Outcome:
    """What the loop found.

    best        the variables of the best iterate, by name (copies)
    best_step   (items,) or (1,), when that was
    best_loss   (items,) or (1,), its loss; the batch's mean where the variables are shared
    best_rank   (items,) or (1,), what made it the best, float64
    losses      mean loss of each step that was taken, and of the last iterate
    steps       how many steps were taken
    seconds     of this call
    taken       number of items that each step differentiated
    """

    best: dict[str, Tensor]
    best_step: Tensor
    best_loss: Tensor
    losses: list[float]
    steps: int
    seconds: float
    best_rank: Tensor
    taken: list[int]


class InterruptedRunError(AdjointDPMError):
    """Ctrl-C or SIGTERM; the state is saved, and the message says where and how to go on.

    code    what a program should exit with: 130 after Ctrl-C, 143 after SIGTERM
    """

    def __init__(self, message: str, code: int = 130) -> None:
        super().__init__(message)
        self.code = code


class StoppedRunError(AdjointDPMError):
    """A metric failed at some step; `outcome` is the best until then, and the message says where it lies."""

    def __init__(self, message: str, outcome: Outcome) -> None:
        super().__init__(message)
        self.outcome = outcome


def optimize(task: Task, optimizer: Callable[[list[Tensor]], Optimizer], loop: LoopSettings) -> Outcome:
    """Minimise a task's losses; see the head of this module.

    Args:
        task: what is optimized.
        optimizer: makes one of torch's optimizers for a list of leaves. Resumption rebuilds it, and gives it
            back its state.
        loop: how.

    Returns:
        Outcome: the best iterate and the losses.

    Raises:
        InputError: a variable that is no leaf or that no loss depends on, a setting of the optimizer that is not
            finite, a folder that holds a checkpoint when `resume` is not set, or that another run writes to, a
            checkpoint of another run or of more steps, a full disk.
        StoppedRunError: a loss raised or was not finite after the first step.
        InterruptedRunError: Ctrl-C or SIGTERM, with a folder to save to; without one, KeyboardInterrupt.
    """
    plain(loop.run.config)  # it is saved after the first steps, and that is late to fail
    with ExitStack() as stack:
        if loop.folder is not None:
            stack.enter_context(run_folder(loop.folder, loop.run.earlier, loop.run.quiet))
        run = _Run(task, optimizer, loop)
        stack.enter_context(stop_once(terminate=loop.folder is not None))
        return run.outcome()


class _Run:
    def __init__(
        self, task: Task, optimizer: Callable[[list[Tensor]], Optimizer], loop: LoopSettings
    ) -> None:
        self.task, self.loop, self.processes = task, loop, Processes.here()
        for name, leaf in task.variables.items():
            if not leaf.is_leaf or not leaf.is_floating_point():
                raise InputError(f"the variable {name!r} must be a leaf of floating point")
            leaf.requires_grad_()
        self.leaves = list(task.variables.values())
        self.optimizer = _made(optimizer, self.leaves)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        if task.per_item and loop.ema_decay is not None:
            raise InputError(
                "ema_decay averages variables that all items share, but here each item has its own"
            )
        rows, averaged = task.items if task.per_item else 1, loop.ema_decay is not None
        self.state = LoopState.fresh(task.variables, rows, averaged)
        self.batch = GradientStep(task, loop, self.processes)
        self.start = time.perf_counter()
        self.most_bytes = 0  # that a step held
        self.between = False  # in the middle of a step: nothing that is worth saving
        if loop.run.resume and loop.checkpoint is not None and has_checkpoint(loop.checkpoint):
            self._resume(loop.checkpoint)
        step = torch.tensor([float(self.state.step)], device=self.leaves[0].device)
        self.processes.sum_([step])
        if float(step) != self.state.step * self.processes.world:
            raise InputError(
                f"the processes of this run found checkpoints of different steps in {loop.folder}; it must lie on a "
                "file system that all of them share"
            )

    def _about(self) -> dict[str, Any]:
        """Return what decides a run besides its config, so that a checkpoint must agree on it."""
        loop = self.loop
        names = ("seed", "batch_size", "max_grad_norm", "decay", "warmup", "ema_decay")
        kind = type(self.optimizer).__name__
        return {name: getattr(loop, name) for name in names} | {"items": self.task.items, "optimizer": kind}

    def _resume(self, path: Path) -> None:
        loop = self.loop
        tensors, about = load_checkpoint(path, check)
        check_config(path, about["config"], loop.run.config, free=("steps", "max_train_steps"))
        check_config(path, about["loop"], self._about(), free=("steps",))
        done, total = about["step"], about["loop"]["steps"]
        if done > loop.steps:
            raise InputError(
                f"the checkpoint {path} is of {done} steps, more than the {loop.steps} of this run; resume with "
                f"--max_train_steps (steps) of at least {done}, or use another output folder"
            )
        self.state.restore(tensors, about, self.task.variables, self.optimizer, more=loop.steps > done)
        falls = loop.rate(loop.steps - 1) != 1
        if falls and total != loop.steps and done and self.processes.first:
            what = f"the {loop.decay} decay" if loop.schedule is None else "the schedule"
            warnings.warn(
                f"{what} of the learning rate was laid over {total} steps for the first {done}, and "
                f"is that of {loop.steps} from now on: the result is not that of {loop.steps} steps in one run",
                stacklevel=4,
            )

    def outcome(self) -> Outcome:
        if not self.state.finished:
            self._guarded(self._all)
        with torch.no_grad():
            for name, leaf in self.task.variables.items():
                leaf.copy_(self.state.best[name])
                leaf.grad = None
        return self._found()

    def _all(self) -> None:
        loop, state = self.loop, self.state
        name = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(self.task).__name__).lower()
        values = sum(leaf.numel() for leaf in self.leaves)
        logger.info(
            "%s: step %d of %d, with %d items; %d numbers change, on %s, in %d processes",
            name,
            state.step,
            loop.steps,
            self.task.items,
            values,
            self.leaves[0].device,
            self.processes.world,
        )
        with progress(name, loop.steps, loop.run.quiet, state.step) as bar:
            while state.step < loop.steps and not self._enough() and not self._stopped():
                self._step(bar)
            self._last()
        logger.info(
            "%s: ended after %d steps in %.1f s; the best iterate has a loss of %.4g",
            name,
            state.step,
            time.perf_counter() - self.start,
            float(state.best_loss.mean()),
        )

    def _found(self) -> Outcome:
        state = self.state
        best = {name: tensor.clone() for name, tensor in state.best.items()}
        seconds = time.perf_counter() - self.start
        steps, losses, taken = state.step, list(state.losses), list(state.taken)
        return Outcome(
            best, state.best_step, state.best_loss, losses, steps, seconds, state.best_rank, taken
        )

    def _guarded(self, work: Callable[[], None]) -> None:
        """Run the steps; whatever ends them, the state before the one that did not come to its end is saved.

        Raises:
            KeyboardInterrupt: Ctrl-C, without a folder.
            Interrupted: SIGTERM, without a folder.
            InterruptedRunError: either of them, and the state is saved.
            StoppedRunError: a loss failed after the first step.
        """
        path = self.loop.checkpoint
        try:
            work()
        except (KeyboardInterrupt, Interrupted) as error:
            if path is None or self.between:
                raise
            ending()
            with held():
                self._save()
            raise InterruptedRunError(
                f"interrupted at step {self.state.step} of {self.loop.steps}; saved in {path}: run the same "
                "command with --resume (resume=True) to go on",
                error.code if isinstance(error, Interrupted) else 130,
            ) from error
        except Exception as error:
            step = self.state.step
            if step == 0 or self.between or isinstance(error, SavingError):
                raise
            with held():
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
        values, batch = self.batch.losses(state.step, differentiate=True, active=state.active)
        held_bytes = self._bytes_held()
        valid = self._validated()
        self._check_gradients()
        with held(), torch.no_grad():
            self.between = True
            self._note(values, batch, valid)
            state.taken.append(len(batch))
            if self.task.per_item:
                state.retain(values.fallen, batch, self.task.going_on)
            if loop.max_grad_norm is not None:
                torch.nn.utils.clip_grad_norm_(self.leaves, loop.max_grad_norm)
            for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
                group["lr"] = rate * loop.rate(state.step)
            self.task.prepare()
            self.optimizer.step()
            self.task.project()
            if loop.ema_decay is not None:
                state.follow(self.task.variables, loop.ema_decay)
            state.step += 1
            self.between = False
            if loop.checkpointing_steps and state.step % loop.checkpointing_steps == 0:
                self._save()
        memory = {"memory": size(held_bytes)} if held_bytes else {}
        bar.set_postfix({"loss": f"{state.losses[-1]:.4g}"} | memory)
        bar.update()
        if loop.run.report is not None and self.processes.first:
            loop.run.report(state.step, {"loss": state.losses[-1]})

    def _last(self) -> None:
        """Score the iterate after the last step, and finish."""
        scored = None
        if not self._enough():
            values, batch = self.batch.losses(
                self.state.step, differentiate=False, active=self.state.active
            )
            scored = values, batch, self._validated(last=True)
        with held(), torch.no_grad():
            if scored is not None:
                self.state.unscored = self.state.copy()
                self._note(*scored)
            self.state.finished = True
            self._save()

    def _enough(self) -> bool:
        """Return whether patience or the aim says so, or no item is left."""
        loop, state = self.loop, self.state
        if not bool(state.active.any()):
            return True
        aim = loop.stop_at is not None and bool((state.best_rank <= loop.stop_at).all())
        return aim or (loop.patience is not None and state.stale >= loop.patience)

    def _stopped(self) -> bool:
        """Return whether the caller ends the run; the iterate that was reached is still scored."""
        return self.loop.run.stop is not None and self.loop.run.stop()

    def _check_gradients(self) -> None:
        """Refuse gradients that would spoil the variables for good.

        Raises:
            NonFiniteError: a gradient is not finite.
        """
        gradients = [leaf.grad for leaf in self.leaves if leaf.grad is not None]
        if bool(torch.nn.utils.get_total_norm(gradients).isfinite()):
            return
        for name, leaf in self.task.variables.items():
            if leaf.grad is not None and not bool(leaf.grad.isfinite().all()):
                raise NonFiniteError(f"the gradient of {name!r} is not finite, though the loss is")

    def _bytes_held(self) -> int:
        """Return the most bytes that a step has held so far: the peak of a GPU, else what backward passes needed."""
        device = self.leaves[0].device
        if device.type == "cuda":
            return torch.cuda.max_memory_allocated(device)
        self.most_bytes = max(self.most_bytes, self.task.bytes_saved() or 0)
        return self.most_bytes

    def _validated(self, last: bool = False) -> float | None:
        every = self.loop.validation_steps
        if not every or (self.state.step % every and not last):
            return None
        with (
            forked(self.loop.seed, "validation"),
            torch.no_grad(),
            holding(self.task.variables, self.state.average or {}),
        ):
            found = float(self.task.validate(self.state.step))
        logger.info("step %d: the validation's loss is %.4g", self.state.step, found)
        return found

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
            iterate = self.state.average or self.task.variables
            self.state.note(iterate, mean, losses.mean().reshape(1), one, None)
        else:
            self.state.losses.append(mean)

    def _save(self) -> None:
        path = self.loop.checkpoint
        if path is None or not self.processes.first:
            return
        tensors, about = self.state.packed(self.task.variables, self.optimizer)
        settings = self._about() | {"steps": self.loop.steps}
        save_checkpoint(path, tensors, {**about, "config": dict(self.loop.run.config), "loop": settings})
        logger.debug("step %d is saved in %s", self.state.step, path)


def _made(optimizer: Callable[[list[Tensor]], Optimizer], leaves: list[Tensor]) -> Optimizer:
    """Return the optimizer, if its settings are numbers that can be used.

    Raises:
        InputError: a setting cannot be used.
    """
    try:
        made = optimizer(leaves)
    except ValueError as error:
        raise InputError(f"the optimizer cannot be made: {error}") from error
    for group in made.param_groups:
        for name, value in group.items():
            for each in value if isinstance(value, (tuple, list)) else (value,):
                if isinstance(each, float) and not math.isfinite(each):
                    raise InputError(f"{name} of the optimizer must be finite, but is {each}")
    return made
