"""Fine-tuning of a classifier on labelled images, as hardening does it.

    (h(x) + max_u h(v(x', u))) / 2       h: cross-entropy of the logits; v(x, u): variant u in [-1, 1]^62 of x

x' is x, or what an attack on the classifier as it is now makes of x. The maximum is sought from a random u in a few
signed steps of the gradient: Madry et al., 2018, arXiv 1706.06083, with the moves and bends of Xiao et al., 2018,
arXiv 1801.02612, in place of changed pixels.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from ...metrics.image_classifier import Labelled
from ...optimization.seeds import key
from ...optimization.task import Losses, Task
from .augmentation import drawn, variants
from .late_attack import LateAttack

__all__ = ["FineTune"]

_STEP = 0.5  # of u; what it may differ by is 2
_VALIDATED = 256  # images; all would take longer than the training


class FineTune(Task):
    """A classifier's weights; its running statistics stay as they are.

    Args:
        classifier: is changed.
        images, labels: (n, channels, height, width) in [0, 1], and (n,).
        steps: of the search for u; 0 for the images as they are.
        seed: of the variants and of the attacks.
        attacks: make x', one in each step, in turn; none for the images as they are.
    """

    def __init__(
        self,
        classifier: Labelled,
        images: Tensor,
        labels: Tensor,
        steps: int,
        seed: int = 0,
        attacks: Sequence[LateAttack] = (),
    ) -> None:
        self.classifier, self.images, self.labels, self.items = classifier, images, labels, len(images)
        self.steps, self.seed, self.attacks = steps, seed, attacks
        classifier.requires_grad_()
        self.variables: Mapping[str, Tensor] = dict(classifier.named_parameters())

    def losses(self, step: int, items: list[int]) -> Losses:
        images, labels = self.images[items], self.labels[items]
        losses = self.entropies(images, labels)
        if self.steps or self.attacks:
            losses = (losses + self.entropies(self.worst(step, items), labels)) / 2
        return Losses(losses)

    def entropies(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return h of each image."""
        return functional.cross_entropy(self.classifier(images), labels, reduction="none")

    def worst(self, step: int, items: list[int]) -> Tensor:
        """Return v(x', u), one an image."""
        images, labels = self.images[items], self.labels[items]
        if self.attacks:
            attack = self.attacks[max(step, 0) % len(self.attacks)]
            images = attack(self.classifier, images, labels, items, key(self.seed, "attack", step))
        draws = drawn([key(self.seed, "variant", step, item) for item in items]).to(images)
        for _ in range(self.steps):
            draws.requires_grad_()
            with torch.enable_grad():
                losses = self.entropies(variants(images, draws), labels)
                (slope,) = torch.autograd.grad(losses.sum(), draws)
            draws = (draws.detach() + _STEP * slope.sign()).clamp(-1, 1)
        return variants(images, draws) if self.steps else images

    @torch.no_grad()
    def validate(self, step: int) -> float:
        # Always the same images and variants: the lowest loss of a batch may be an easy batch's.
        items = torch.linspace(0, self.items - 1, min(self.items, _VALIDATED)).long()
        return float(torch.cat([self.losses(-1, part.tolist()).values for part in items.split(32)]).mean())
