"""Metrics of plain pixels."""

import pytest
import torch

import adjointdpm as adp
from adjointdpm import metrics as m


def test_background_is_the_border_alone():
    images = torch.zeros(1, 3, 8, 8)
    images[:, 2], images[:, :, 2:6, 2:6] = 1.0, 0.3
    assert float(m.BackgroundColour((0, 0, 1), 2)(images)) == 0.0
    assert float(m.BackgroundColour((1, 0, 1), 2)(images)) == pytest.approx(1 / 3)
    with pytest.raises(adp.InputError, match="three numbers"):
        m.BackgroundColour((0, 0, 2))


def test_chroma_of_pure_red_is_that_of_its_luminance():
    """Rec. 709: Y = 0.2126 R + 0.7152 G + 0.0722 B."""
    for channel, y in enumerate((0.2126, 0.7152, 0.0722)):
        image = torch.zeros(1, 3, 2, 2, dtype=torch.float64)
        image[:, channel] = 1
        assert float(m.Chroma()(image)) == pytest.approx(((1 - y) ** 2 + 2 * y**2) / 3, rel=1e-12)
