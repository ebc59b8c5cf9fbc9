"""What a classifier says of finished points, on draws that no attack has seen.

single     the label of one draw is wrong              what a user of a randomized classifier meets
worst      the label of at least one draw is wrong     what an attacker who may try again meets
majority   the label that most draws give is wrong     what a vote over the draws meets
"""

from dataclasses import dataclass

from torch import Tensor, nn

from .expectation import over_draws
from .losses import margin

__all__ = ["Verdict", "judged"]


@dataclass(frozen=True, eq=False)
class Verdict:
    """The labels of several draws.

    Args:
        said: (draws, batch), the label of each draw.
        labels: (batch,), the true one, or the one to be reached.
        targeted: whether reaching the label is the success, instead of missing it.
        margins: (batch,), of the mean logits: z_y - max_{j != y} z_j.
    """

    said: Tensor
    labels: Tensor
    targeted: bool
    margins: Tensor

    @property
    def each(self) -> Tensor:
        """Whether each draw is a success, (draws, batch)."""
        return (self.said == self.labels) == self.targeted

    @property
    def single(self) -> Tensor:
        """Whether the first draw is one, (batch,)."""
        return self.each[0]

    @property
    def worst(self) -> Tensor:
        """Whether any draw is one, (batch,)."""
        return self.each.any(0)

    @property
    def majority(self) -> Tensor:
        """Whether the label of the most draws is one, (batch,)."""
        return (self.voted == self.labels) == self.targeted

    @property
    def voted(self) -> Tensor:
        """The label of the most draws, the smallest of several, (batch,)."""
        return self.said.mode(0).values


def judged(
    classifier: nn.Module,
    x: Tensor,
    labels: Tensor,
    *,
    draws: int = 5,
    target: Tensor | None = None,
    seed: int = 0,
    batch: int | None = None,
) -> Verdict:
    """Return what a classifier says of points, on fresh draws.

    Args:
        classifier: (batch, *shape) to logits: the audited one, whatever was attacked in its place.
        x: (batch, *shape), such as `Found.x`, or images read from their files.
        labels: (batch,), the true classes.
        draws: number of draws, at least 1; all of them are the same where the classifier is not randomized.
        target: (batch,), classes to be reached; any wrong one is a success by default.
        seed: of the draws; none of them is one of an attack's.
        batch: number of points at once; all of them if None.

    Returns:
        Verdict: whether a single draw, the worst draw and the majority are misled.

    Raises:
        InputError: a batch normalization is in training mode.
        NonFiniteError: a logit is NaN.
    """
    logits = over_draws(classifier, x, draws, batch, seed, "fresh")
    margins = margin(logits.mean(0), labels)
    return Verdict(logits.argmax(2), labels if target is None else target, target is not None, margins)
