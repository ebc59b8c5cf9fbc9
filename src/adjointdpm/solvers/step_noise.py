"""Replayable noise: the same seed and interval give the same bits, in any order and on any device.

A stochastic sampler's gradient is that of the path it took, so its noise must be there again whenever a
step is made again: in a checkpoint, in a finite difference, in another adjoint. Here it is a function of
the seed and the step's two noise levels, and nothing is stored.
"""

import hashlib
import struct
from dataclasses import dataclass

import torch
from torch import Tensor

from .._types import Scalar

__all__ = ["StepNoise"]


@dataclass(frozen=True)
class StepNoise:
    """Independent standard normal noise for each interval of the solver's clock.

    Args:
        seed: another seed is another path.
    """

    seed: int = 0

    def normal(self, start: Scalar, end: Scalar, like: Tensor) -> Tensor:
        """(W(end) - W(start)) / sqrt(|end - start|), in the shape, dtype and device of `like`."""
        key = struct.pack("<qdd", self.seed, float(start), float(end))
        number = int.from_bytes(hashlib.blake2b(key, digest_size=7).digest(), "little")
        generator = torch.Generator().manual_seed(number)
        return torch.randn(like.shape, generator=generator, dtype=like.dtype).to(like.device)
