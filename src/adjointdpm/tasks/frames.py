"""Videos and sound in tasks: the frames that a step differentiates, and what there is none of for a medium.

    g = grad 1/k sum_{f in S} L(x_f),     S k of the F frames, drawn anew for each step

Its mean over S is the gradient of the mean over all frames. Reports and validations measure all frames.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._types import Cond, InputError
from ..metrics.frames import needs_all_frames
from ..optimization.seeds import key
from ..samplers.base import Sampler

__all__ = ["NOUNS", "FrameDraws", "check_judge", "frames_of", "sample_frames"]

NOUNS = {"image": "images", "video": "videos", "audio": "waveforms"}
"""What samples of a medium are called on pages."""


@dataclass(frozen=True)
class FrameDraws:
    """Draws the frames of each step; a step's are the same for all items, in all processes and after a resume.

    Args:
        sampler: makes the videos.
        per_step: number of frames for each step; all of them if None.
        seed: of the draws.
        metric: what is differentiated.

    Raises:
        InputError: a number is given, and the sampler makes no videos, or shorter ones, or the metric is of whole
            videos.
    """

    sampler: Sampler
    per_step: int | None
    seed: int
    metric: Any

    def __post_init__(self) -> None:
        if self.per_step is None:
            return
        if self.sampler.medium != "video":
            raise InputError(f"frames_per_step is of videos, but this sampler makes {self.sampler.medium}")
        count = self.sampler.output_shape[0]
        if self.per_step > count:
            raise InputError(f"frames_per_step is {self.per_step}, but the videos have {count} frames")
        if needs_all_frames(self.metric):
            raise InputError(
                "frames_per_step leaves out frames that the metric of whole videos (WholeVideo) needs; leave it out"
            )

    def at(self, step: int) -> tuple[int, ...] | None:
        """Return the numbers of a step's frames in order; None for all of them."""
        if self.per_step is None:
            return None
        generator = torch.Generator().manual_seed(key(self.seed, "frames", step))
        drawn = torch.randperm(self.sampler.output_shape[0], generator=generator)[: self.per_step]
        return tuple(sorted(drawn.tolist()))


def sample_frames(sampler: Sampler, noise: Tensor, cond: Cond, frames: Sequence[int] | None) -> Tensor:
    """Sample images, or some frames of videos where their numbers are given."""
    return sampler(noise, cond) if frames is None else sampler(noise, cond, frames)


def frames_of(videos: Tensor, frames: Sequence[int] | None) -> Tensor:
    """Return some frames of videos (batch, frames, ...); the videos themselves if None."""
    return videos if frames is None else videos[:, list(frames)]


def check_judge(sampler: Sampler, judge: Any) -> None:
    """Refuse a judge of images for sound.

    Raises:
        InputError: the sampler makes sound, and there is a judge.
    """
    if judge is not None and sampler.medium == "audio":
        raise InputError("a judge classifies images, but this sampler makes audio; leave it out")
