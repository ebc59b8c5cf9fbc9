"""Seeds that are keyed, so that a draw depends on what it is for and not on what was drawn before.

key(seed, step, item)      the same in every process, after every resumption, in any order
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["epoch_batch", "forked", "generator", "key"]


def key(*parts: int | str) -> int:
    """Return a seed of 63 bits from some numbers and words."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(*parts: int | str) -> torch.Generator:
    """Return a generator of the CPU whose seed is the key of some numbers and words."""
    return torch.Generator().manual_seed(key(*parts))


@contextmanager
def forked(*parts: int | str) -> Iterator[None]:
    """Seed the global generators by a key in this block; its draws leave no trace outside.

    Args:
        parts: the numbers and words of the key.

    Yields:
        None: nothing is passed to the block.
    """
    cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
    with torch.random.fork_rng([torch.cuda.current_device()] if cuda else []):
        torch.manual_seed(key(*parts))
        yield


def epoch_batch(items: int, size: int, step: int, seed: int) -> list[int]:
    """Return the items of a step's batch: each once an epoch, in an order that the seed and the epoch fix."""
    if size >= items:
        return list(range(items))
    epoch, place = divmod(step, -(-items // size))  # the last batch of an epoch may be smaller
    order: list[int] = torch.randperm(items, generator=generator(seed, "epoch", epoch)).tolist()
    return order[place * size : (place + 1) * size]
