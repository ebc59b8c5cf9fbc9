"""Random choices of an adjoint that are made again by a run that is repeated or resumed."""

import hashlib
import random
import struct

import torch
from torch import Tensor

__all__ = ["draws"]


def draws(seed: int, noise: Tensor) -> random.Random:
    """Random choices that are a function of a seed and of the noise that a sampling starts from.

    So a run that is repeated or resumed makes the same choices, to the bit, without a state to be saved, and another
    noise gets other choices, as in training.

    Args:
        seed: each seed gives other choices for the same noise.
        noise: the start of the sampling, (batch, *shape).

    Returns:
        the generator.
    """
    content = noise.detach().to("cpu").contiguous().flatten().view(torch.uint8)
    key = hashlib.blake2b(struct.pack("<q", seed) + content.numpy().tobytes(), digest_size=8).digest()
    return random.Random(int.from_bytes(key, "little"))
