"""Draws depend on what they are for, and on nothing that was drawn before."""

import torch

from adjointdpm.optimization.seeds import epoch_batch, forked, generator, key


def test_an_epoch_shows_each_item_once():
    for epoch in range(3):
        seen = [i for step in range(3) for i in epoch_batch(7, 3, 3 * epoch + step, seed=4)]
        assert sorted(seen) == list(range(7))
    assert epoch_batch(7, 3, 0, 4) != epoch_batch(7, 3, 3, 4)


def test_a_generator_is_that_of_its_key():
    draws = [torch.rand(3, generator=generator(1, "noise", item)) for item in (0, 1, 0)]
    assert torch.equal(draws[0], draws[2])
    assert not torch.equal(draws[0], draws[1])
    assert torch.equal(draws[0], torch.rand(3, generator=torch.Generator().manual_seed(key(1, "noise", 0))))


def test_draws_in_a_forked_block_are_keyed_and_leave_no_trace():
    before = torch.get_rng_state()
    with forked(4, "dropout"):
        first = torch.rand(3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    with forked(4, "dropout"):
        assert torch.equal(torch.rand(3), first)
