"""Sound as files: 16 bits, channels in turn, the rate in the header."""

import io
import wave

import torch

from adjointdpm.files.sounds import as_16_bit, read_wav, wav


def test_levels_are_clamped_and_rounded_once():
    levels = as_16_bit(torch.tensor([[-2.0, -1.0, 0.0, 0.4 / 32767, 0.6 / 32767, 1.0, 3.0]]))
    assert levels.tolist() == [[-32767, -32767, 0, 0, 1, 32767, 32767]]


def test_a_saved_waveform_comes_back_to_its_level():
    waveform = 2 * torch.rand(2, 50, generator=torch.Generator().manual_seed(0)) - 1
    content = wav(as_16_bit(waveform), 44100.0)
    read, rate = read_wav(content)
    assert rate == 44100
    assert torch.equal(as_16_bit(read), as_16_bit(waveform))
    assert float((read - waveform).abs().max()) <= 0.5 / 32767 + 1e-7
    with wave.open(io.BytesIO(content)) as file:  # left and right take turns
        first = torch.frombuffer(bytearray(file.readframes(1)), dtype=torch.int16)
    assert torch.equal(first, as_16_bit(waveform)[:, 0])
