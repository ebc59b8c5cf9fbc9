"""Where a run's losses and images are logged, by accelerate's trackers: tensorboard and wandb."""

from pathlib import Path
from typing import Any

from torch import Tensor

from .._types import InputError
from ..files.images import as_8_bit

__all__ = ["Tracker", "tracker_of"]


class Tracker:
    """Logs of one run, by a started tracker of accelerate.

    Args:
        tracker: the tracker.
        layout: further arguments of its `log_images`, for arrays (batch, height, width, channels).
    """

    def __init__(self, tracker: Any, layout: dict[str, str]) -> None:
        self.tracker, self.layout = tracker, layout

    def report(self, step: int, values: dict[str, float]) -> None:
        """Log numbers of a step."""
        self.tracker.log(dict(values), step=step)

    def images(self, step: int, name: str, images: Tensor) -> None:
        """Log images (batch, channels, height, width) in [0, 1]."""
        arrays = as_8_bit(images).permute(0, 2, 3, 1).numpy()
        self.tracker.log_images({name: arrays}, step=step, **self.layout)
        writer = getattr(self.tracker, "writer", None)
        if writer is not None:
            writer.flush()  # it writes every two minutes, and not at the end of a process


def tracker_of(name: str, folder: Path) -> Tracker:
    """Start a tracker, which logs into a folder and, for wandb, where its settings say.

    Args:
        name: tensorboard or wandb.
        folder: the run's output folder; tensorboard's files go into `tensorboard` there, wandb's into `wandb`.

    Returns:
        the tracker, started.

    Raises:
        InputError: accelerate or the tracker's own package is not installed, or it cannot write or start.
    """
    try:
        from accelerate import PartialState
        from accelerate.tracking import TensorBoardTracker, WandBTracker

        PartialState()  # the trackers' own logging asks for it
        if name == "tensorboard":
            made: Any = TensorBoardTracker("tensorboard", logging_dir=str(folder))
        else:
            import wandb  # noqa: F401  # pyright: ignore[reportMissingImports, reportUnusedImport]

            made = WandBTracker("adjointdpm", dir=str(folder), name=folder.name)
        made.main_process_only = False  # this is called in the first process alone
        if hasattr(made, "start"):
            made.start()
    except ImportError as error:
        raise InputError(
            f"report_to {name} needs accelerate and {name}: pip install accelerate {name} (or report_to none)"
        ) from error
    except OSError as error:
        raise InputError(f"{name} cannot write to {folder}: {error.strerror or error}") from error
    except Exception as error:  # wandb has errors of its own, such as for a missing key
        raise InputError(
            f"{name} cannot be started: {' '.join(str(error).split())[:200]} (or report_to none)"
        ) from error
    return Tracker(made, {"dataformats": "NHWC"} if name == "tensorboard" else {})
