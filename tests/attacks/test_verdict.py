"""Single draw, worst draw and majority vote are told apart, on draws that no attack has seen."""

import torch

from adjointdpm.attacks import Verdict, judged
from adjointdpm.attacks.expectation import over_draws
from tests.attacks.noisy import Linear, Noisy, images


def test_the_three_verdicts():
    said = torch.tensor([[0, 1, 1, 0], [0, 0, 1, 1], [0, 0, 1, 1]])
    labels = torch.zeros(4, dtype=torch.long)
    found = Verdict(said, labels, False, torch.zeros(4))
    assert found.single.tolist() == [False, True, True, False]
    assert found.worst.tolist() == [False, True, True, True]
    assert found.majority.tolist() == [False, False, True, True]
    reached = Verdict(said, torch.ones(4, dtype=torch.long), True, torch.zeros(4))
    assert torch.equal(reached.each, found.each)
    assert torch.equal(reached.majority, found.majority)


def test_verdicts_are_of_fresh_draws():
    x, labels, model = images(20), torch.zeros(20, dtype=torch.long), Noisy()
    found = judged(model, x, labels, draws=9, seed=4)
    drawn = over_draws(model, x, 9, None, 4, "fresh")
    assert torch.equal(found.said, drawn.argmax(2))
    attacks_own = over_draws(model, x, 9, None, 4, 0, 0, 0)
    assert not torch.equal(drawn, attacks_own)
    assert float(found.single.double().mean()) <= float(found.worst.double().mean())
    others = drawn.mean(0)[:, 1:].amax(1)
    assert torch.allclose(found.margins, drawn.mean(0)[:, 0] - others)


def test_draws_of_a_plain_classifier_agree():
    x, model = images(5), Linear()
    found = judged(model, x, model(x).argmax(1), draws=3)
    assert not found.worst.any()
    assert torch.equal(found.single, found.majority)
