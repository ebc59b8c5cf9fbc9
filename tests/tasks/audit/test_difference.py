"""Differences of pixels: scaled by the largest of all, each with its own largest in words."""

import torch

from adjointdpm.tasks.audit.difference import difference_table


def test_the_largest_difference_of_all_is_white_and_each_is_named():
    before = torch.full((2, 3, 4, 4), 100, dtype=torch.uint8)
    after = before.clone()
    after[0, 0, 1, 1], after[1, 2, 0, 0] = 90, 105
    table = difference_table(before, after)
    assert table.captions == ["at most 10 levels", "at most 5 levels"]
    assert int(table.images[0].max()) == 255
    assert int(table.images[1].max()) == 127
    assert int((table.images > 0).sum()) == 2
    assert int(difference_table(before, before).images.max()) == 0
