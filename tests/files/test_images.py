"""Image files of all kinds: read as a person sees them, or refused in one line before they are decoded."""

import os
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

import adjointdpm as adp
from adjointdpm.cli.parse_metric import image_option
from adjointdpm.files.images import as_8_bit, image_file, png, read_image, sheet

RAMP = np.tile(np.arange(64) / 63, (48, 1))
DEEP = (RAMP * 65535).round().astype("uint16")
COLOR = (np.stack([RAMP, 1 - RAMP, RAMP**2], -1) * 255).round().astype("uint8")


def as_tensor(array):
    return torch.tensor(np.ascontiguousarray(array)).permute(2, 0, 1).float() / 255


@pytest.fixture
def read(tmp_path):
    """What is read of an image that was saved."""

    def saved(image, name, **options):
        image.save(tmp_path / name, **options)
        return image_file(tmp_path / name)

    return saved


@pytest.mark.parametrize("name", ["x.png", "x.tiff", "x.pgm", "x.jp2"])
def test_sixteen_bits_of_grey(read, name):
    found = read(Image.fromarray(DEEP), name)
    assert torch.equal(found, torch.tensor(DEEP / 65535).float().expand(3, -1, -1))


def test_numbers_without_a_known_white_are_refused(read):
    grey = RAMP.astype("float32")
    assert torch.equal(read(Image.fromarray(grey), "x.tiff"), torch.tensor(grey).expand(3, -1, -1))
    for values in (255 * grey, grey - 0.1, np.where(grey > 0.5, np.nan, grey)):
        with pytest.raises(adp.InputError, match="must lie between 0 and 1"):
            read(Image.fromarray(values), "x.tiff")
    with pytest.raises(adp.InputError, match="32-bit integers say nothing of what is white"):
        read(Image.fromarray(DEEP.astype("int32")), "x.tiff")


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.webp"])
def test_the_orientation_of_a_photograph(read, turn, name):
    seen = {
        1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1), 6: lambda a: np.rot90(a, -1), 7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
        8: lambda a: np.rot90(a),
    }  # fmt: skip
    image = Image.fromarray(COLOR)
    tag = image.getexif()
    tag[0x0112] = turn
    found = read(image, name, exif=tag)
    assert float((found - as_tensor(seen[turn](COLOR))).abs().mean()) < 0.02


def test_transparency_lies_on_white(read):
    alpha = np.broadcast_to(np.arange(48)[:, None] * 5, RAMP.shape).astype("uint8")
    found = read(Image.fromarray(np.dstack([COLOR, alpha])), "x.png")
    a = torch.tensor(alpha).float() / 255
    torch.testing.assert_close(found, a * as_tensor(COLOR) + 1 - a)
    for hidden in (0, 200):
        clear = np.zeros((8, 8, 4), "uint8")
        clear[..., :3] = hidden
        assert torch.equal(read(Image.fromarray(clear), "x.png"), torch.ones(3, 8, 8))
    grey = Image.fromarray(np.dstack([COLOR[..., 0], alpha]))
    torch.testing.assert_close(read(grey, "x.png"), (a * as_tensor(COLOR)[0] + 1 - a).expand(3, -1, -1))


def test_palettes_and_colors_that_stand_for_transparency(read):
    flat = np.zeros((4, 6, 3), "uint8")
    flat[:, 3:] = (255, 0, 0)
    red = as_tensor(flat)
    white = red.clone()
    white[:, :, :3] = 1.0
    palette = Image.fromarray(flat).convert("P", palette=Image.Palette.ADAPTIVE, colors=2)
    assert torch.equal(read(palette, "x.png"), red)
    black = palette.getpixel((0, 0))
    assert torch.equal(read(palette, "x.png", transparency=black), white)
    assert torch.equal(read(palette, "x.gif", transparency=black), white)
    assert torch.equal(read(Image.fromarray(flat), "x.png", transparency=(0, 0, 0)), white)
    with pytest.raises(adp.InputError, match="16-bit grey and transparent"):
        read(Image.fromarray(DEEP), "x.png", transparency=0)


@pytest.mark.parametrize(
    ("mode", "name"), [("CMYK", "x.tiff"), ("CMYK", "x.jpg"), ("YCbCr", "x.jpg"), ("L", "x.png")]
)
def test_other_colors(read, mode, name):
    image = Image.fromarray(COLOR).convert(mode)
    wanted = as_tensor(np.asarray(image.convert("RGB")))
    assert float((read(image, name) - wanted).abs().mean()) < 0.02


@pytest.mark.parametrize("name", ["x.gif", "x.png", "x.webp", "x.tiff"])
def test_animations_are_refused(read, name):
    image = Image.fromarray(COLOR)
    with pytest.raises(adp.InputError, match="2 frames; save the one that you want"):
        read(image, name, save_all=True, append_images=[image.rotate(180)])


def bomb(path, width, height):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""))


@pytest.mark.parametrize(("width", "height"), [(30000, 30000), (11000, 11000), (2**30, 1), (8192, 8193)])
def test_a_bomb_is_refused_before_it_is_decoded(tmp_path, width, height):
    bomb(tmp_path / "x.png", width, height)
    with pytest.raises(adp.InputError, match=r"at most 67 million|exceeds limit"):
        image_file(tmp_path / "x.png")


def test_what_is_no_file_or_no_image(tmp_path):
    os.mkfifo(tmp_path / "pipe")  # would be waited for, for ever
    for path in (tmp_path / "pipe", "/dev/zero", "/dev/stdin", tmp_path):
        with pytest.raises(adp.InputError, match="no file, but a folder, pipe or device"):
            image_option(str(path))
    (tmp_path / "large.png").touch()
    os.truncate(tmp_path / "large.png", 2**33)
    Image.fromarray(COLOR).save(tmp_path / "whole.png")
    Image.fromarray(COLOR).save(tmp_path / "whole.tga")
    content = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(content[: len(content) // 2])
    (tmp_path / "empty.png").touch()
    for name, message in {
        "large.png": "8192 MiB, and at most 512", "cut.png": "truncated", "empty.png": "no image of the formats PNG",
        "whole.tga": "no image of the formats PNG", "nowhere.png": "No such file", "x\0.png": "null",
    }.items():  # fmt: skip
        with pytest.raises(adp.InputError, match=message) as caught:
            image_option(str(tmp_path / name))
        assert "cannot read the image" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_the_size_that_is_needed(tmp_path):
    image = Image.fromarray(COLOR)
    tag = image.getexif()
    tag[0x0112] = 6
    image.save(tmp_path / "x.png", exif=tag)
    assert image_option(str(tmp_path / "x.png"), (64, 48)).shape == (3, 64, 48)  # as it is seen
    with pytest.raises(adp.InputError, match="is 48 x 64 pixels, but 64 x 48 are compared with"):
        image_option(str(tmp_path / "x.png"), (48, 64))


def test_grey_images_are_written_and_read_as_grey():
    grey = torch.randint(0, 256, (2, 1, 5, 7), dtype=torch.uint8)
    assert torch.equal(read_image(png(grey[0])) * 255, grey[0].float())
    page = sheet(grey, columns=1, gap=1)
    assert page.shape == (1, 11, 7)
    assert torch.equal(page[:, 6:], grey[1])
    assert int(page[:, 5].min()) == 255


def test_eight_bits_are_the_nearest_ones():
    values = torch.tensor([0.0, 0.4 / 255, 0.6 / 255, 254.7 / 255, 1.0, 1.3, -0.2])
    found = as_8_bit(values.view(1, 1, -1).expand(3, 1, -1))
    assert found[0, 0].tolist() == [0, 0, 1, 255, 255, 255, 0]


def test_images_survive_a_file():
    image = torch.rand(3, 5, 7)
    back = read_image(png(as_8_bit(image)))
    assert float((back - image).abs().max()) <= 0.5 / 255 + 1e-6
    assert int(as_8_bit(torch.tensor([[[1.7]], [[-0.3]], [[0.5]]]))[0]) == 255
    page = sheet(torch.zeros(5, 3, 4, 4, dtype=torch.uint8), columns=3, gap=1)
    assert page.shape == (3, 9, 14)
    assert int((page[0] == 0).sum()) == 5 * 16


def test_images_open_elsewhere(tmp_path):
    path = tmp_path / "one.png"
    path.write_bytes(png(torch.full((3, 4, 6), 200, dtype=torch.uint8)))
    with Image.open(path) as image:
        assert image.size == (6, 4)
