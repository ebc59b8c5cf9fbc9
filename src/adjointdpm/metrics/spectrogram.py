"""The distance of two sounds by their spectra over time.

S_w(x) = |STFT_w(x)| / sum w,     L(x) = mean over windows w, channels and bins of |log(S_w(x) + e) - log(S_w(y) + e)|
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from .._types import InputError
from .base import AnySamples, Values, Weighable

__all__ = ["SpectrogramDistance"]


@dataclass(frozen=True, eq=False)
class SpectrogramDistance(Weighable):
    """Mean distance of the logarithms of two spectrograms, of several window lengths.

        L(x) = mean |log(S(x) + e) - log(S(y) + e)|

    Use it to bring a sound near another one for the ear: it knows loudness by frequency and time, and no phase. Do
    not use it for sounds of different lengths. Short windows are exact in time, long ones in frequency.

    Args:
        target: the other sound y, (channels, samples), or one for each of a batch.
        windows: lengths of the windows in samples, each at least 4; a quarter of each is the step.
        floor: e, the magnitude below which differences count little, above 0; 1e-3 is 60 dB below full loudness.

    Raises:
        InputError: no windows, or one that is too short; when called, sounds of another shape, or too short for a
            window.

    References:
        Yamamoto, Song and Kim, 2020, arXiv 1910.11480 (the multi-resolution STFT loss, whose logarithmic part this is).

    Examples:
        >>> import torch
        >>> import adjointdpm as adp
        >>> wave = torch.randn(1, 4096, generator=torch.Generator().manual_seed(0))
        >>> distance = adp.metrics.SpectrogramDistance(wave, floor=1e-6)
        >>> [f"{each:.2f}" for each in distance(torch.stack([wave, 0.5 * wave])).tolist()]
        ['0.00', '0.69']
    """

    target: Tensor
    windows: tuple[int, ...] = (512, 1024, 2048)
    floor: float = 1e-3

    def __post_init__(self) -> None:
        if not self.windows or min(self.windows) < 4 or self.floor <= 0:
            raise InputError(
                f"a spectrogram needs windows of at least 4 samples and a floor above 0, but has {self.windows} and "
                f"{self.floor:g}"
            )

    def __call__(self, waveforms: AnySamples) -> Values:
        shape, given = tuple(self.target.shape[-2:]), tuple(waveforms.shape[1:])
        if given != shape or shape[-1] <= max(self.windows) // 2:
            raise InputError(
                f"the sounds are {given} and that of comparison {shape} (channels, samples); both must be the same, "
                f"and longer than half of the longest window, {max(self.windows)}"
            )
        target = self.target.to(waveforms)
        distances = [
            (self._levels(waveforms, window) - self._levels(target, window)).abs().flatten(1).mean(1)
            for window in self.windows
        ]
        return torch.stack(distances).mean(0)

    def _levels(self, waveforms: Tensor, window: int) -> Float[Tensor, "batch channels bins times"]:
        """Return the logarithm of the spectrogram of sounds (..., channels, samples)."""
        flat = waveforms.reshape(-1, waveforms.shape[-1])
        shape = torch.hann_window(window, dtype=flat.dtype, device=flat.device)
        spectrum = torch.stft(flat, window, window // 4, window=shape, return_complex=True)
        power = (spectrum.real.square() + spectrum.imag.square()) / shape.sum().square()
        # A magnitude has no derivative at 0; a tenth of the floor is less than the logarithm tells apart.
        return (
            ((power + (self.floor / 10) ** 2).sqrt() + self.floor)
            .log()
            .view(-1, waveforms.shape[-2], *spectrum.shape[-2:])
        )
