"""What an attack raises: closed forms, what the logits' scale does to them, and what are no logits."""

import pytest
import torch

import adjointdpm as adp
from adjointdpm.attacks.losses import check_logits, loss, margin

LOGITS = torch.tensor([[5.0, 3.0, 2.0, 1.0], [0.0, 4.0, 1.0, 2.0]], dtype=torch.float64)
LABELS, OTHERS = torch.tensor([0, 0]), torch.tensor([2, 3])


@pytest.mark.parametrize(
    ("kind", "away", "towards"),
    [
        ("margin", [-2.0, 4.0], [-3.0, 2.0]),
        ("dlr", [-2 / (5 - 2), 4 / (4 - 1)], [-3 / (5 - 1.5), 2 / (4 - 0.5)]),
    ],
)
def test_losses_are_those_of_the_papers(kind, away, towards):
    assert loss(kind, LOGITS, LABELS).tolist() == pytest.approx(away)
    assert loss(kind, LOGITS, LABELS, OTHERS).tolist() == pytest.approx(towards)


def test_cross_entropy_and_margins():
    log = LOGITS.log_softmax(1)
    assert torch.equal(loss("ce", LOGITS, LABELS), -log[:, 0])
    assert torch.equal(loss("ce", LOGITS, LABELS, OTHERS), log[[0, 1], OTHERS])
    assert margin(LOGITS, LABELS).tolist() == [2.0, -4.0]
    assert margin(LOGITS, LABELS, OTHERS).tolist() == [3.0, 2.0]
    assert margin(LOGITS, LABELS, torch.tensor([0, 1])).tolist() == [-2.0, -2.0]


def test_only_the_ratio_does_not_depend_on_the_scale():
    for kind in ("ce", "dlr", "margin"):
        z = LOGITS.clone().requires_grad_()
        (g,) = torch.autograd.grad(loss(kind, 1000 * z, LABELS).sum(), z)
        (h,) = torch.autograd.grad(loss(kind, z, LABELS).sum(), z)
        assert torch.allclose(g, h) == (kind == "dlr")
    z = LOGITS.clone().requires_grad_()
    (g,) = torch.autograd.grad(loss("ce", 1000 * z, LABELS)[0], z)
    assert not g.any()  # the cross-entropy's vanishes


def test_what_has_no_loss_is_refused():
    with pytest.raises(adp.InputError, match="ce, dlr, margin, but is 'l2'"):
        loss("l2", LOGITS, LABELS)
    with pytest.raises(adp.InputError, match="needs 4 classes or more here, but there are 3"):
        loss("dlr", LOGITS[:, :3], LABELS, LABELS)
    with pytest.raises(adp.InputError, match="before the softmax"):
        check_logits(LOGITS.softmax(1))
    check_logits(LOGITS)
    check_logits(LOGITS.log_softmax(1))
