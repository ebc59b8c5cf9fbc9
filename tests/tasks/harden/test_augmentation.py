"""Variants of an image are those that their seed draws."""

import pytest
import torch

from adjointdpm.tasks.harden.augmentation import drawn, variants


def test_variants_move_mirror_tint_and_bend_as_told():
    torch.manual_seed(0)
    images, draws = torch.rand(2, 3, 8, 8, dtype=torch.float64), torch.zeros(2, 62, dtype=torch.float64)

    def varied(**columns):
        told = draws.clone()
        for name, value in columns.items():
            told[:, int(name[1:])] = value
        return variants(images, told)

    torch.testing.assert_close(varied(), images)
    torch.testing.assert_close(varied(_3=-1.0), images.flip(3))
    left = images[..., [1, 2, 3, 4, 5, 6, 7, 7]]  # by an eighth of the side, the border repeated
    torch.testing.assert_close(varied(_4=1.0), left)
    torch.testing.assert_close(varied(_5=-1.0)[:, :, 1:], images[:, :, :-1])
    tinted = images.clone()
    tinted[:, 1] = (1.2 * (images[:, 1] - 0.5) + 0.5).clamp(0, 1)
    tinted[:, 2] = (images[:, 2] - 0.1).clamp(0, 1)
    torch.testing.assert_close(varied(_7=1.0, _11=-1.0), tinted)
    # A bend that is the same everywhere is a shift, here by a tenth of half the side: 0.4 pixels.
    torch.testing.assert_close(
        varied(**{f"_{i}": 1.0 for i in range(12, 37)})[..., :-1],
        0.6 * images[..., :-1] + 0.4 * images[..., 1:],
    )
    # An image of radii is the same after a turn, where the turned corners do not matter.
    axis = torch.linspace(-1, 1, 65, dtype=torch.float64)
    radii = (axis[:, None] ** 2 + axis**2).div(2).expand(1, 3, -1, -1)
    turn = torch.zeros(1, 62, dtype=torch.float64)
    turn[:, 0] = 1.0
    inside = (slice(None), slice(None), slice(20, 45), slice(20, 45))
    torch.testing.assert_close(variants(radii, turn)[inside], radii[inside], rtol=0, atol=1e-3)


def test_a_variants_draws_are_its_seeds_own():
    both, one = drawn([3, 4]), drawn([4])
    assert torch.equal(both[1:], one)
    assert float(both.abs().max()) <= 1
    assert float(drawn(range(200)).mean()) == pytest.approx(0, abs=0.02)
    assert float(drawn(range(200)).var()) == pytest.approx(1 / 3, abs=0.01)
