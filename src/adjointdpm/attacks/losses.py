"""What an attack raises: losses of logits z with the label y, or towards a class t.

    ce       -log softmax(z)_y                                        log softmax(z)_t
    margin   max_{j != y} z_j - z_y                                   z_t - z_y
    dlr      -(z_y - max_{j != y} z_j) / (z_(1) - z_(3))              -(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2)

z_(k) is the k-th largest logit. The difference of logits ratio (Croce and Hein, 2020, arXiv 2003.01690) does not depend
on the logits' scale, which a defence could shrink or blow up to hide the gradient of a cross-entropy.
"""

import torch
from torch import Tensor

from .._types import InputError
from ..metrics.classifier_losses import margin_of

__all__ = ["LOSSES", "check_logits", "loss", "margin"]

LOSSES = ("ce", "dlr", "margin")


def loss(kind: str, logits: Tensor, labels: Tensor, towards: Tensor | None = None) -> Tensor:
    """Return what is raised, (batch,).

    Args:
        kind: one of `LOSSES`.
        logits: (batch, classes); of three classes or more for dlr, of four or more for dlr towards a class.
        labels: (batch,).
        towards: (batch,), classes to be reached; away from the label if None.

    Raises:
        InputError: another kind, or too few classes.
    """
    if kind == "ce":
        chosen = labels if towards is None else towards
        log = torch.log_softmax(logits, 1).gather(1, chosen[:, None])[:, 0]
        return -log if towards is None else log
    if kind not in LOSSES:
        raise InputError(f"the loss of an attack is one of {', '.join(LOSSES)}, but is {kind!r}")
    if towards is None:
        raised = -margin_of(logits, labels)
    else:
        reached, own = (logits.gather(1, each[:, None])[:, 0] for each in (towards, labels))
        raised = reached - own
    if kind == "margin":
        return raised
    needed = 3 if towards is None else 4
    if logits.shape[1] < needed:
        raise InputError(
            f"the loss dlr needs {needed} classes or more here, but there are {logits.shape[1]}; take ce or margin"
        )
    top = logits.sort(1, descending=True).values
    scale = top[:, 0] - (top[:, 2] if towards is None else (top[:, 2] + top[:, 3]) / 2)
    return raised / (scale + 1e-12)


def margin(logits: Tensor, labels: Tensor, target: Tensor | None = None) -> Tensor:
    """Return how far logits are from a success, (batch,); negative for one.

        z_y - max_{j != y} z_j,     or     max_{j != t} z_j - z_t     where t is to be reached

    Args:
        logits: (batch, classes).
        labels: (batch,).
        target: (batch,), the only classes that count; any other than the label if None.
    """
    return margin_of(logits, labels) if target is None else -margin_of(logits, target)


def check_logits(logits: Tensor) -> None:
    """Refuse probabilities.

    Args:
        logits: (batch, classes), of images.

    Raises:
        InputError: every row lies in [0, 1] and sums to 1.
    """
    ones = logits.sum(1) - 1
    if bool((logits >= 0).all()) and float(ones.abs().max()) < 1e-3:
        raise InputError(
            "the classifier returns probabilities (each row is within [0, 1] and sums to 1), whose gradient vanishes "
            "where it is sure, so that it would seem robust; return the logits before the softmax"
        )
