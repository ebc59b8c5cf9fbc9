"""Projection onto white noise: noise whose spectrum is flat in every block of frequencies.

    y = F(x) in C^{N/2},   y_0 = (X_0 + i X_{N/2}) / sqrt(2),   y_k = X_k       X: the orthonormal DFT of x in R^N
    white:   |y_b|_1 = sqrt(pi) / 2 B,   |y_b|_2^2 = B                          for every block b of B values

x is standard normal if and only if y is complex standard normal, and these are its expectations. F keeps distances (but
for a factor), and the blocks are apart from each other, so the nearest white x has a closed form: in each block the
magnitudes are moved by a constant, those below 0 are set to 0, and all are scaled; the phases stay as they are.
"""

import math

import torch
from torch import Tensor

from .._types import InputError

__all__ = ["check_size", "projected"]

_BLOCK = 16
_LEAST = 64


def check_size(shape: tuple[int, ...]) -> None:
    """See to it that noise of a shape has enough frequencies for a spectrum.

    Args:
        shape: of one noise, without the batch.

    Raises:
        InputError: it has an odd number of values, or fewer than 64.
    """
    size = math.prod(shape)
    if size % 2 or size < _LEAST:
        raise InputError(
            f"white_noise needs noise of an even number of values, at least {_LEAST}, but it has {size} "
            f"({' x '.join(map(str, shape))}); leave it out"
        )


def projected(noise: Tensor) -> Tensor:
    """Return the white noise that is nearest to given noise; see the head of this module.

    Use it after each step of an optimization, so that the noise stays of the kind that the model was trained on: the
    norm alone does not forbid patterns. Its norm becomes the square root of its number of values. Do not use it for
    noise that is to come back exactly: even random noise is moved, by about a seventh of its norm.

    Args:
        noise: (batch, *shape), real.

    Returns:
        white noise of the same shape and dtype.

    Raises:
        InputError: a noise has an odd number of values, or fewer than 64.

    References:
        Hwang and Sung, 2026, arXiv 2602.08646.

    Examples:
        >>> import torch
        >>> x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> white = projected(x)
        >>> round(float(white.square().sum()), 2), bool(torch.allclose(projected(white), white, atol=1e-4))
        (256.0, True)
    """
    check_size(tuple(noise.shape[1:]))
    x = noise.flatten(1).to(torch.promote_types(noise.dtype, torch.float32))
    spectrum = torch.fft.rfft(x, norm="ortho")
    ends = torch.complex(spectrum[:, 0].real, spectrum[:, -1].real) / math.sqrt(2)
    y = torch.cat([ends[:, None], spectrum[:, 1:-1]], 1)
    whole = y.shape[1] // _BLOCK * _BLOCK
    if y.shape[1] - whole == 1:  # one value alone cannot have both norms
        whole -= _BLOCK
    parts = [_blocks(y[:, :whole].unflatten(1, (-1, _BLOCK))).flatten(1)]
    if whole < y.shape[1]:
        parts.append(_blocks(y[:, None, whole:]).flatten(1))
    y = torch.cat(parts, 1)
    first, last = (math.sqrt(2) * part[:, None].to(y) for part in (y[:, 0].real, y[:, 0].imag))
    made = torch.fft.irfft(torch.cat([first, y[:, 1:], last], 1), n=x.shape[1], norm="ortho")
    return made.to(noise.dtype).view_as(noise)


def _blocks(y: Tensor) -> Tensor:
    """Return the nearest blocks (batch, blocks, B) with both norms.

    Of the n largest magnitudes w the threshold is m - sqrt(r V / (n (n - r))), with their mean m, V = sum (w - m)^2 and
    r = pi / 4 B; n is the one whose threshold lies between its smallest magnitude and the next one.
    """
    size = y.shape[-1]
    ratio, length = math.pi / 4 * size, math.sqrt(math.pi) / 2 * size
    magnitudes = y.abs()
    w = magnitudes.sort(-1, descending=True).values
    n = torch.arange(1, size + 1, dtype=w.dtype, device=w.device)
    sums = w.cumsum(-1)
    spread = (w.square().cumsum(-1) - sums.square() / n).clamp(min=0)
    bound = sums / n - (ratio * spread / (n * (n - ratio)).clamp(min=1e-12)).sqrt()
    below = torch.cat([w[..., 1:], torch.full_like(w[..., :1], -torch.inf)], -1)
    fits = (n > ratio) & (below <= bound)
    count = fits.to(torch.int8).argmax(-1, keepdim=True)  # the first one that fits
    kept = (magnitudes - bound.gather(-1, count)).clamp(min=0)
    scaled = length * kept / kept.sum(-1, keepdim=True).clamp(min=1e-12)
    return torch.polar(scaled, y.angle())
