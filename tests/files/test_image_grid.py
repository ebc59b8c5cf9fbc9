"""A grid holds the images' own pixels, each at its place, and room for every caption."""

import numpy as np
import pytest
import torch

import adjointdpm as adp

COLORS = torch.rand(3, 3, 4, 6, generator=torch.Generator().manual_seed(0)).mul(255).round() / 255


def places(grid, image, factor):
    """Where an enlarged image stands in a grid: (top, left) of every exact copy."""
    block = (image * 255).round().byte().permute(1, 2, 0).numpy().repeat(factor, 0).repeat(factor, 1)
    windows = np.lib.stride_tricks.sliding_window_view(np.asarray(grid), block.shape)[:, :, 0]
    return np.argwhere((windows == block).all((2, 3, 4))).tolist()


def test_every_image_is_enlarged_by_a_whole_factor_in_its_row_and_column():
    grid = adp.image_grid({"above": COLORS, "below": COLORS[[2, 0]]}, width=20)
    (first,), (again,) = places(grid, COLORS[1], 4), places(grid, COLORS[1], 4)
    assert first == again
    upper, lower = places(grid, COLORS[0], 4)
    other, under = places(grid, COLORS[2], 4)
    assert upper[0] == first[0] == other[0] < under[0] == lower[0]
    assert upper[1] == under[1] < first[1] == lower[1] < other[1]
    assert grid.mode == "RGB"
    saved = {"above": (COLORS * 255).round().byte(), "below": COLORS[[2, 0]]}
    assert adp.image_grid(saved, width=20).tobytes() == grid.tobytes()


def test_values_outside_the_range_are_clamped_and_gray_becomes_rgb():
    grid = adp.image_grid({"": torch.tensor([-1.0, 2.0]).view(2, 1, 1, 1).expand(-1, -1, 4, 6)}, width=16)
    assert len(places(grid, torch.zeros(3, 4, 6), 3)) == 1
    assert places(grid, torch.ones(3, 4, 6), 3)


def test_captions_are_written_under_their_own_row():
    plain = adp.image_grid({"a": COLORS, "b": COLORS}, width=60)
    below = adp.image_grid({"a": COLORS, "b": COLORS}, ["cat", "car", "a long caption of words"], width=60)
    each = adp.image_grid({"a": COLORS, "b": COLORS}, {"a": ["cat", "car", "key"]}, width=60)
    assert plain.height < each.height < below.height  # lines: none, one, and some
    (_, low), (_, moved) = places(plain, COLORS[0], 10), places(each, COLORS[0], 10)
    assert places(below, COLORS[0], 10)[1] == low  # the captions are under both rows
    assert moved[0] > low[0]  # the captions are between the rows
    between = np.asarray(each)[places(each, COLORS[0], 10)[0][0] + 40 : moved[0]]
    assert (between < 128).any()


def test_what_does_not_fit_is_refused():
    with pytest.raises(adp.InputError, match="of one size by name, but their shapes are"):
        adp.image_grid({"a": COLORS, "b": COLORS[:, :, :2]})
    for empty in ({}, {"a": COLORS[:0]}, {"a": COLORS[0]}):
        with pytest.raises(adp.InputError, match="rows are images"):
            adp.image_grid(empty)
    with pytest.raises(
        adp.InputError, match="captions of the row 'b' are 2, but the rows are 'a' of 3 images"
    ):
        adp.image_grid({"a": COLORS}, {"b": ["x", "y"]})
    with pytest.raises(adp.InputError, match="captions of the row 'a' are 2"):
        adp.image_grid({"a": COLORS}, ["x", "y"])
    with pytest.raises(adp.InputError, match="at least 16 pixels, but is 8"):
        adp.image_grid({"a": COLORS}, width=8)
