"""Sound as files: WAV of 16 bits, clamped and rounded once when it is saved.

level = round(32767 clamp(x, -1, 1))
"""

import io
import wave

import torch
from jaxtyping import Float, Int16
from torch import Tensor

__all__ = ["as_16_bit", "read_wav", "wav"]

FULL = 32767


def as_16_bit(waveforms: Float[Tensor, "*batch c n"]) -> Int16[Tensor, "*batch c n"]:
    """Convert waveforms to 16 bits: clamp to [-1, 1], multiply by 32767 and round.

    Args:
        waveforms: (*batch, channels, samples), nominally in [-1, 1].

    Returns:
        (*batch, channels, samples), int16, on the CPU, without a graph.
    """
    return (waveforms.detach().clamp(-1, 1) * FULL).round().to("cpu", torch.int16)


def wav(waveform: Int16[Tensor, "c n"], rate: float | int) -> bytes:
    """Encode a waveform as a WAV file.

    Args:
        waveform: (channels, samples), int16.
        rate: samples in a second, rounded to a whole number.

    Returns:
        the file's content.

    Examples:
        >>> import torch
        >>> from adjointdpm.files.sounds import as_16_bit, read_wav, wav
        >>> waveform = torch.tensor([[0.0, 1.0, -1.0, 2.0]])
        >>> read_wav(wav(as_16_bit(waveform), 8000))
        (tensor([[ 0.,  1., -1.,  1.]]), 8000)
    """
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(len(waveform))
        file.setsampwidth(2)
        file.setframerate(round(rate))
        file.writeframes(waveform.T.contiguous().numpy().astype("<i2").tobytes())
    return buffer.getvalue()


def read_wav(content: bytes) -> tuple[Float[Tensor, "c n"], int]:
    """Decode a WAV file of 16 bits.

    Args:
        content: the file's content.

    Returns:
        (channels, samples) in [-1, 1], float32, and the samples in a second.
    """
    with wave.open(io.BytesIO(content), "rb") as file:
        channels, rate, levels = (
            file.getnchannels(),
            file.getframerate(),
            file.readframes(file.getnframes()),
        )
    flat = torch.frombuffer(bytearray(levels), dtype=torch.int16)
    return (flat.view(-1, channels).T.float() / FULL).contiguous(), rate
