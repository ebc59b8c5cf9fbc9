"""Seeds that are keyed, so that a draw depends on what it is for and not on what was drawn before.

key(seed, step, item)      the same in every process, after every resumption, in any order
"""

import hashlib

import torch

__all__ = ["epoch_batch", "key"]


def key(*parts: int | str) -> int:
    """A seed of 63 bits from some numbers and words."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def epoch_batch(items: int, size: int, step: int, seed: int) -> list[int]:
    """The items of a step's batch: each once an epoch, in an order that the seed and the epoch fix."""
    if size >= items:
        return list(range(items))
    epoch, place = divmod(step, -(-items // size))  # the last batch of an epoch may be smaller
    generator = torch.Generator().manual_seed(key(seed, "epoch", epoch))
    order: list[int] = torch.randperm(items, generator=generator).tolist()
    return order[place * size : (place + 1) * size]
