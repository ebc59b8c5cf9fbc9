"""Where a learned token starts: known words are screened by the metric, and short runs are made from the best of them.

    L(w) = mean_i L(x(noise_i, c_i(w)); y_i)          over all pairs of prompt and noise that are trained on

The words w are ordered by L(w), without a gradient. The first `num_starts` of them are each trained for `start_steps`
steps; the token with the lowest mean of these goes on, with a new optimizer. A mean that is not finite comes last.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..._types import InputError
from ...optimization.loop import optimize
from ...optimization.progress import progress
from ...optimization.seeds import forked
from ...optimization.task import LoopSettings, Task
from .learned_token import Learned

__all__ = ["Start", "check_starts", "choose_start"]


@dataclass(frozen=True)
class Start:
    """One initial word.

    Args:
        word: the known word.
        metric: mean of the goal's metric with this word in place of the token, over all pairs that are trained on.
        metric_after: the same mean with the token after a short run from this word; None if there was no such run.
        chosen: whether the token starts from it.
    """

    word: str
    metric: float
    metric_after: float | None = None
    chosen: bool = False

    @property
    def reached(self) -> float:
        """The lower of both means; a short run keeps its best iterate, and the word itself is its first."""
        return self.metric if self.metric_after is None else self.metric_after

    def as_dict(self) -> dict[str, Any]:
        """Return what result.json says of it."""
        return asdict(self)


def check_starts(learned: Learned, num_starts: int) -> None:
    """Check that there are as many initial words as short runs.

    Args:
        learned: the token.
        num_starts: the number of initial words from which a short run is made; 1 for none.

    Raises:
        InputError: there are fewer words.
    """
    words = len(learned.initializers)
    if num_starts > words:
        raise InputError(
            f"num_starts is {num_starts}, but the token has {words} initial word{'s' if words > 1 else ''} "
            f"({', '.join(learned.initializers)}); give more words as its initializer, or fewer starts"
        )


def choose_start(
    task: Task,
    learned: Learned,
    optimizer: Callable[[list[Tensor]], Optimizer],
    loop: LoopSettings,
    *,
    num_starts: int,
    start_steps: int,
) -> list[Start]:
    """Let the token start from the best of its initial words.

    Nothing is done where there is one word. The result is a function of the settings alone, so that a run that is
    resumed chooses the same; short runs continue from their checkpoints.

    Args:
        task: has the token's variables, and validates over all pairs.
        learned: the token, which is changed: it holds the best iterate of the best short run, or the best word's rows.
        optimizer: as of `optimize`.
        loop: the settings of the run that follows. Each short run has a folder of its own in `loop.folder`.
        num_starts: the number of words from which a short run is made, from 2 to that of the words; 1 for none.
        start_steps: the number of steps of a short run.

    Returns:
        the words, that with the lowest metric first; empty where there is one word.

    Raises:
        InputError: there are fewer words than starts; as of `optimize`.
    """
    check_starts(learned, num_starts)
    words = learned.initializers
    if len(words) == 1:
        return []
    screened: list[Start] = []
    with progress("initial words", len(words), loop.run.quiet) as bar:
        for word in words:
            learned.start_from(word)
            screened.append(Start(word, _validated(task, loop)))
            bar.update()
    screened.sort(key=lambda each: each.metric)
    if num_starts > 1:
        tried, rows = _short_runs(
            task, learned, optimizer, loop, [each.word for each in screened[:num_starts]], start_steps
        )
        found = [
            replace(each, metric_after=after)
            for each, after in zip(screened, [*tried, *[None] * len(screened)], strict=False)
        ]
        best = min(range(num_starts), key=lambda i: found[i].reached)
        learned.start_from(found[best].word)
        with torch.no_grad():
            for name, leaf in learned.variables.items():
                leaf.copy_(rows[best][name])
    else:
        found, best = screened, 0
        learned.start_from(found[best].word)
    return [replace(each, chosen=i == best) for i, each in enumerate(found)]


def _short_runs(
    task: Task,
    learned: Learned,
    optimizer: Callable[[list[Tensor]], Optimizer],
    loop: LoopSettings,
    words: Sequence[str],
    steps: int,
) -> tuple[list[float], list[dict[str, Tensor]]]:
    """Return the mean metric after a short run from each word, and the token's variables then."""
    reached, rows = [], []
    with progress("short runs", steps * len(words), loop.run.quiet) as bar:
        for number, word in enumerate(words):
            learned.start_from(word)
            folder = None if loop.folder is None else Path(loop.folder) / f"start-{number}"
            run = replace(
                loop.run,
                quiet=True,
                report=lambda *_: bar.update(),
                config={**loop.run.config, "start": word},
            )
            optimize(task, optimizer, replace(loop, steps=steps, folder=folder, run=run))
            bar.update(steps * (number + 1) - bar.n)  # steps that were done before a run was resumed
            reached.append(_validated(task, loop))
            rows.append({name: leaf.detach().clone() for name, leaf in learned.variables.items()})
    return reached, rows


def _validated(task: Task, loop: LoopSettings) -> float:
    """Return the mean metric over all pairs, in the same way as the loop validates."""
    with forked(loop.seed, "validation"), torch.no_grad():
        value = task.validate(0)
    return value if math.isfinite(value) else math.inf
