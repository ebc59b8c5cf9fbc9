"""What the settings of all tasks have in common; fields are flags, keys of a config and values in Python."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from .._types import Range, check_settings
from ..files.images import output_folder
from ..optimization.task import LoopSettings, RunOptions

__all__ = ["BatchSettings", "Count", "FrameSettings", "Length", "TaskSettings", "checkpointed"]

Count = Annotated[int, Range(1)]
Length = Annotated[float, Range(0, open_low=True)]


@dataclass(frozen=True, kw_only=True)
class TaskSettings:
    """How a task optimizes.

    Args:
        max_train_steps: Number of optimization steps.
        learning_rate: Step length of the optimizer (Adam), above 0.
        train_batch_size: Number of images that are differentiated at once; all of them if it is not given.
        seed: Random seed.
        checkpointing_steps: Number of steps between checkpoints; 0 saves only at the end.

    Raises:
        InputError: a value lies outside its range.
    """

    max_train_steps: Count = 100
    learning_rate: Length = 0.1
    train_batch_size: Annotated[int | None, Range(1)] = None
    seed: Annotated[int, Range(0, 2**63 - 1)] = 0
    checkpointing_steps: Annotated[int, Range(0)] = 10

    def __post_init__(self) -> None:
        check_settings(self)

    def loop(self, folder: Path, run: RunOptions, config: Mapping[str, Any]) -> LoopSettings:
        """Return the settings of this task's optimization, whose learning rate falls to 0.

        Args:
            folder: for its checkpoints; made if need be.
            run: how the run goes on.
            config: what a checkpoint must agree on, in place of that of `run`.
        """
        return LoopSettings(
            steps=self.max_train_steps,
            decay="cosine",
            seed=self.seed,
            folder=output_folder(folder),
            checkpointing_steps=self.checkpointing_steps,
            run=replace(run, config=config),
        )


@dataclass(frozen=True, kw_only=True)
class FrameSettings(TaskSettings):
    """How a task optimizes, and how many frames of a video a step differentiates.

    Args:
        frames_per_step: Number of frames of a video, drawn at random, whose metric each step differentiates; all of
            them if it is not given.
    """

    frames_per_step: Annotated[int | None, Range(1)] = None


@dataclass(frozen=True, kw_only=True)
class BatchSettings(FrameSettings):
    """How a task optimizes what all of its images share: a step takes the mean gradient of a batch.

    Args:
        gradient_accumulation_steps: Number of batches, one after the other, whose mean gradient one step takes.
    """

    gradient_accumulation_steps: Count = 1

    def loop(self, folder: Path, run: RunOptions, config: Mapping[str, Any]) -> LoopSettings:
        each, parts = self.train_batch_size, self.gradient_accumulation_steps
        return replace(
            super().loop(folder, run, config),
            batch_size=None if each is None else each * parts,
            accumulation=parts,
        )


def checkpointed(about: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a checkpoint must agree on: everything but how often one is saved."""
    return {name: value for name, value in about.items() if name != "checkpointing_steps"}
