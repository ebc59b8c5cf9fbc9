"""Uploaded images: what is kept, what is refused, and what is deleted."""

import numpy as np
import pytest
import torch
from PIL import Image

import adjointdpm as adp
from adjointdpm.files.images import image_file
from adjointdpm.studio import upload
from adjointdpm.studio.upload import kept_image


def saved(path, width, height):
    levels = np.linspace(0, 255, width * height * 3).reshape(height, width, 3).astype("uint8")
    Image.fromarray(levels).save(path)
    return path


def test_a_small_image_is_kept_as_it_is_and_the_upload_is_gone(tmp_path):
    came = saved(tmp_path / "came.png", 30, 20)
    expected = image_file(came)
    kept = kept_image(came, tmp_path / "session" / "reference.png")
    assert torch.equal(image_file(tmp_path / "session" / "reference.png"), expected)
    assert torch.equal(kept / 255, expected)
    assert not came.exists()


def test_a_large_image_is_kept_small_in_its_shape(tmp_path):
    kept = kept_image(saved(tmp_path / "came.jpg", 2048, 1024), tmp_path / "reference.png")
    assert tuple(kept.shape) == (3, 256, 512)
    assert float(kept.float().mean()) == pytest.approx(127.5, abs=2)


def test_what_is_no_image_or_too_large_is_refused_and_deleted(tmp_path, monkeypatch):
    monkeypatch.setattr(upload, "MOST_PIXELS", 100)
    large, text = saved(tmp_path / "large.png", 20, 20), tmp_path / "text.png"
    text.write_text("<svg onload=alert(1)>")
    for path, message in ((large, "20 x 20"), (text, "no image")):
        with pytest.raises(adp.InputError, match=message):
            kept_image(path, tmp_path / "reference.png")
        assert not path.exists()
    assert not (tmp_path / "reference.png").exists()
