"""Initial noise -> an image that a classifier misclassifies: the objective, and its optimization by gradients.

    minimise over x in Ball(c):   max(m(G(x)), -k) + w |f(G(x)) - f(G(c))|^2 / |f(G(c))|^2
    m = z_y - max_{j != y} z_j    untargeted;   m = max_{j != t} z_j - z_t    towards t

On logits: a softmax saturates, and its gradient with it. Past the confidence k the first term rests, and only
the second, which keeps the image near the original's in another network's features f, is left (Carlini and
Wagner, 2017, arXiv 1608.04644). The steps are normalized, since the gradient's length says nothing here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..._types import Cond
from ...attacks.norm_ball import Ball
from ...metrics import ContentDistance, Margin
from ...metrics.style_content import Features
from ...optimization.task import Losses, Standing
from ...samplers.base import Sampler
from ..noise_optimization import Judged, NoiseTask, Stages
from ..sampling import saved

__all__ = ["Attack", "NoiseClassifier", "Objective", "pixels"]

_MISSED = 1e6  # added to the rank of images whose saved file is still read right


def pixels(images: Tensor) -> list[Tensor]:
    """Return the image itself as its only feature."""
    return [images]


@dataclass(frozen=True, eq=False)
class Objective:
    """What a perturbation is to reach, for each start.

    Args:
        classifier: images in [0, 1] to logits.
        labels: (starts,) what each image shows, or, if `targeted`, what it is to be taken for.
        targeted: towards the label instead of away from it.
        confidence: k >= 0, in logits.
        features: f of the head of this module; None for no second term.
        weight: w >= 0.
        originals: (starts, 3, height, width), G(c).
    """

    classifier: Callable[[Tensor], Tensor]
    labels: Tensor
    targeted: bool
    confidence: float
    features: Features | None
    weight: float
    originals: Tensor

    def of(self, starts: list[int]) -> "Objective":
        """Return the same for some of the starts."""
        return replace(self, labels=self.labels[starts], originals=self.originals[starts])

    def margins(self, images: Tensor, items: list[int]) -> Tensor:
        """Return m, negative where the classifier is fooled."""
        values = Margin(self.classifier, self.labels[items])(images)
        return -values if self.targeted else values

    def __call__(self, images: Tensor, items: list[int]) -> Losses:
        """Return the loss, and a rank by which every file that fools comes before every one that does not."""
        values = self.margins(images, items).clamp(min=-self.confidence)
        if self.features is not None and self.weight:
            values = values + self.weight * ContentDistance(self.features, self.originals[items])(images)
        with torch.no_grad():
            on_file = self.margins(saved(images), items)
        return Losses(values, torch.where(on_file < 0, values.clone(), _MISSED + on_file))


class Attack(NoiseTask):
    """The perturbation of many starts at once, each with a row of its own.

    Args:
        stages, cond: make the images; the conditioning of all starts.
        start: (starts, *shape), the balls' centres; copied.
        ball: where the noise may be.
        objective: what is minimised.
        groups: (starts,) the number of the image of each start; an image each if None.
        white: whether the noise is projected onto white noise before it is projected onto the ball.
        judged: which images may not fall; None for none.
        stop_at_success: whether an image is optimized no more once one of its starts has a file that fools.
    """

    def __init__(
        self,
        stages: Stages,
        cond: Cond,
        start: Tensor,
        ball: Ball,
        objective: Objective,
        groups: Sequence[int] | None = None,
        white: bool = False,
        judged: Judged | None = None,
        stop_at_success: bool = False,
    ) -> None:
        super().__init__(stages, cond, start, groups, white, judged)
        self.stop_at_success = stop_at_success
        # Another copy: a ball around the tensor that is being moved would move with it.
        self.centre, self.ball, self.objective = start.clone(), ball, objective

    def losses(self, step: int, items: list[int]) -> Losses:
        images = self.sampled(step, items)
        return self.ranked(step, items, images, self.objective(images, items))

    def going_on(self, step: int, standing: Standing) -> Tensor:
        left = super().going_on(step, standing)
        if self.stop_at_success:
            group = torch.tensor(self.groups, device=left.device)
            left = left & ~torch.isin(group, group[standing.rank < _MISSED / 2])
        return left

    def prepare(self) -> None:
        noise = self.variables["noise"]
        assert noise.grad is not None
        noise.grad.copy_(self.ball.direction(noise.grad, self.centre))

    def project(self) -> None:
        super().project()
        noise = self.variables["noise"]
        noise.copy_(self.ball.project(noise, self.centre))


class NoiseClassifier(nn.Module):
    """A sampler and a classifier as one module: noise in, logits out, for any attack library.

        attack(NoiseClassifier(sampler, cond, classifier), noise, labels)

    Tools that clamp their input to [0, 1], as for images, must not do so here: noise has no such bounds.

    Args:
        sampler: makes the images.
        cond: of one prompt, or of as many as the batches will have rows.
        classifier: images in [0, 1] to logits.
    """

    def __init__(self, sampler: Sampler, cond: Cond, classifier: nn.Module) -> None:
        super().__init__()
        self.sampler, self.cond, self.classifier = sampler, cond, classifier

    def forward(self, noise: Tensor) -> Tensor:
        """Return logits (batch, classes) of the images of noise (batch, *shape)."""
        return self.classifier(self.sampler(noise, self.cond))
