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
