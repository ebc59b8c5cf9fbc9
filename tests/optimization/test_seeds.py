"""Batches of an epoch."""

from adjointdpm.optimization.seeds import epoch_batch


def test_an_epoch_shows_each_item_once():
    for epoch in range(3):
        seen = [i for step in range(3) for i in epoch_batch(7, 3, 3 * epoch + step, seed=4)]
        assert sorted(seen) == list(range(7))
    assert epoch_batch(7, 3, 0, 4) != epoch_batch(7, 3, 3, 4)
