"""Videos as files: every frame comes back to the bit, equal frames and the time of each included."""

import io

import pytest
import torch
from PIL import Image

from adjointdpm.files.films import film, read_film, strip


def video(frames=5, side=16, channels=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (frames, channels, side, side), generator=generator, dtype=torch.uint8)


def as_bytes(frames):
    return (255 * frames).round().to(torch.uint8)


@pytest.mark.parametrize("rate", [8, 16, 24, 29.97])
def test_frames_come_back_to_the_bit(rate):
    given = video(6)
    given[2] = given[3] = given[1]
    given[5] = given[4]
    content = film(given, rate)
    assert torch.equal(as_bytes(read_film(content, rate)), given)
    with Image.open(io.BytesIO(content)) as image:
        assert image.n_frames == 3  # equal frames are stored once
        assert image.info["loop"] == 0


@pytest.mark.parametrize("frames", [1, 4])
def test_films_that_stand_still(frames):
    given = video(1).expand(frames, -1, -1, -1)
    content = film(given, 8)
    read = as_bytes(read_film(content, 8))
    assert torch.equal(read, given[:1])


def test_gray_films_are_read_in_three_channels():
    given = video(3, channels=1)
    assert torch.equal(as_bytes(read_film(film(given, 8), 8)), given.expand(-1, 3, -1, -1))


def test_strips_are_small():
    small = video(3)
    assert strip(small, 8) == film(small, 8)
    smooth = torch.linspace(0, 255, 600).to(torch.uint8).expand(3, 3, 300, 600).contiguous()
    smooth[1:] //= 2  # another frame
    shown = as_bytes(read_film(strip(smooth, 8), 8))
    assert shown.shape == (3, 3, 128, 256)
    assert (shown[0].float().mean() - smooth[0].float().mean()).abs() < 2
