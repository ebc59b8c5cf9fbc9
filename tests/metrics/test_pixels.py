"""Metrics of plain pixels."""

import pytest
import torch

import adjointdpm as adp
from adjointdpm import metrics as m
from adjointdpm.metrics import Chroma, Margin, PixelDistance


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


def test_metrics_are_what_they_say():
    images = torch.rand(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(PixelDistance(torch.rand(2, 3, 4, 4).double()), images)
    assert torch.autograd.gradcheck(Chroma(), images)
    grey = torch.rand(1, 1, 4, 4).expand(1, 3, 4, 4)
    assert float(Chroma()(grey)) == pytest.approx(0, abs=1e-12)

    class Fixed(torch.nn.Module):
        def forward(self, images):
            return torch.tensor([[3.0, 1.0, 2.5], [0.0, 4.0, 5.0]])

    margins = Margin(Fixed(), torch.tensor([0, 1]))(torch.zeros(2, 3, 4, 4))  # type: ignore[arg-type]
    assert margins.tolist() == [0.5, -1.0]
