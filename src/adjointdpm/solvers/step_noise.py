"""Replayable noise: the same seed and interval give the same bits, in any order and on any device.

The gradient of a stochastic sampler is that of the path it took. So whenever a step is repeated (in a checkpoint, in a
finite difference, in another adjoint) its noise must be the same. Here the noise is a function of the seed and of the
step's two noise levels, and nothing is stored. It is not a Wiener process: the noise of [a, b] and of [b, c] does not
add up to that of [a, c].
"""

import hashlib
import struct
from dataclasses import dataclass

import torch
from torch import Tensor

from .._types import Scalar

__all__ = ["NoiseOfItems", "StepNoise"]


@dataclass(frozen=True)
class StepNoise:
    """Independent standard normal noise for each interval of the solver's variable tau.

    Args:
        seed: each seed gives another path.

    Examples:
        >>> import torch
        >>> import adjointdpm as adp
        >>> start, end = torch.tensor([2.0, 1.0], dtype=torch.float64)
        >>> draws = [adp.StepNoise(seed=0).normal(start, end, torch.zeros(3)) for _ in range(2)]
        >>> torch.equal(*draws)
        True
    """

    seed: int = 0

    def normal(self, start: Scalar, end: Scalar, like: Tensor) -> Tensor:
        """The standard normal noise of one step.

        Args:
            start: tau at the step's departure.
            end: tau at its arrival.
            like: a tensor whose shape, dtype and device the noise takes.

        Returns:
            the noise; the same bits for the same seed, `start` and `end`.
        """
        key = struct.pack("<qdd", self.seed, float(start), float(end))
        number = int.from_bytes(hashlib.blake2b(key, digest_size=7).digest(), "little")
        generator = torch.Generator().manual_seed(number)
        return torch.randn(like.shape, generator=generator, dtype=like.dtype).to(like.device)


@dataclass(frozen=True)
class NoiseOfItems(StepNoise):
    """Noise of a batch whose rows each have a seed of their own, whatever else is in the batch.

    Args:
        seeds: one for each row; the rows of the same seed get the same noise.
    """

    seeds: tuple[int, ...] = ()

    def normal(self, start: Scalar, end: Scalar, like: Tensor) -> Tensor:
        each = zip(self.seeds, like.split(1), strict=True)
        return torch.cat([StepNoise(seed).normal(start, end, row) for seed, row in each])
