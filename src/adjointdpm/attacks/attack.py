"""An attack on any classifier, of images or of noise: the search, and which of its points is kept.

    raise l(x) = E_xi loss(f(x; xi), y)  over x in Ball(c);     kept: the point of the lowest mean margin

All means are over the same number of draws at every point. A success in one draw therefore counts as one of k, where a
search that keeps whatever succeeded once would keep the luckiest of hundreds of draws. What is kept is no result yet:
`judged` tries it on fresh draws.
"""

from dataclasses import dataclass, field
from typing import Annotated

import torch
from torch import Tensor, nn

from .._types import InputError, OneOf, Range, check_settings
from ..flow.per_sample import chosen, normal_rows
from ..optimization.seeds import key
from .expectation import Estimate, Expectation, over_draws
from .losses import LOSSES, check_logits
from .methods import APGD, Method
from .norm_ball import ImageBall, Region

__all__ = ["Attack", "Found"]


@dataclass(frozen=True, eq=False)
class Found:
    """What an attack found.

    x               (batch, *shape), the kept points; images have 8 bits and lie in the ball
    centre          (batch, *shape), where the attack began
    margins         (batch,), the mean margin of the kept points before they were rounded
    losses          the mean loss of each step, of the first run
    gradients       number of gradients for each point, over draws, steps and runs
    zero_gradients  share of the steps' gradients that were exactly zero
    """

    x: Tensor
    centre: Tensor
    margins: Tensor
    losses: list[float]
    gradients: int
    zero_gradients: float


@dataclass(frozen=True, kw_only=True)
class Attack:
    """A search for points near given ones that a classifier misclassifies.

    Use it on images with an `ImageBall`, and on noise with a `Ball` and a `NoiseClassifier`. A randomized classifier
    (`Purified` without a seed) needs several `draws`: with one, each step follows the noise of its own draw.

    Args:
        ball: Where the points may be.
        method: How the search steps.
        loss: What is raised: ce, dlr or margin.
        steps: Number of steps, each with one gradient a draw.
        draws: Number of draws of a randomized classifier, over which each step takes the mean.
        restarts: Number of runs, each from another random point of the ball.
        targets: Number of wrong classes, the likeliest first, each of which gets runs of its own that lead towards it;
            none for runs that lead away from the label.
        batch: Number of points at once; all of them if None.
        seed: Random seed.

    Raises:
        InputError: a value lies outside its range.

    References:
        Croce and Hein, 2020, arXiv 2003.01690; Athalye et al., 2018, arXiv 1707.07397 (the mean over draws).

    Examples:
        >>> import torch
        >>> from adjointdpm.attacks import Attack, ImageBall, judged
        >>> classifier = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
        >>> image, label = torch.full((1, 3, 8, 8), 0.5), torch.tensor([0])
        >>> image[:, 0] += 0.02
        >>> found = Attack(ball=ImageBall(4 / 255), steps=5)(classifier, image, label)
        >>> judged(classifier, found.x, label).majority.tolist()
        [True]
    """

    ball: Region = field(default_factory=ImageBall)
    method: Method = field(default_factory=APGD)
    loss: Annotated[str, OneOf(LOSSES)] = "margin"
    steps: Annotated[int, Range(1)] = 100
    draws: Annotated[int, Range(1)] = 1
    restarts: Annotated[int, Range(1)] = 1
    targets: Annotated[int, Range(0)] = 0
    batch: Annotated[int | None, Range(1)] = None
    seed: Annotated[int, Range(0, 2**63 - 1)] = 0

    def __post_init__(self) -> None:
        check_settings(self)

    def __call__(
        self, classifier: nn.Module, x: Tensor, labels: Tensor, target: Tensor | None = None
    ) -> Found:
        """Return what was found.

        Args:
            classifier: (batch, *shape) to logits (batch, classes); a module that only stands for the audited one, such
                as `surrogate` makes, may be attacked in its place.
            x: (batch, *shape), the balls' centres; images are rounded to 8 bits first, as their files are.
            labels: (batch,), the true classes.
            target: (batch,), classes to be reached; any wrong one by default.

        Raises:
            InputError: images outside [0, 1], labels of another number or of no class, a target together with
                `targets`, more of them than there are wrong classes, probabilities in place of logits, a batch
                normalization in training mode, or no gradient.
            NonFiniteError: logits, a loss or its gradient are not finite.
        """
        centre = self.ball.centre_of(x)
        logits = over_draws(classifier, centre, self.draws, self.batch, self.seed, "clean").mean(0)
        self._check(logits, labels, target)
        wrong = logits.scatter(1, labels[:, None], -torch.inf).argsort(1, descending=True)
        goals: list[Tensor | None] = list(wrong.T[: self.targets]) if self.targets else [target]
        expectation = Expectation(classifier, self.loss, self.draws, self.batch, self.seed)
        best = _Best(centre)
        for r in range(self.restarts):
            drawn = normal_rows([key(self.seed, "start", r, i) for i in range(len(centre))], centre)
            start = self.ball.random(drawn, centre)
            for number, towards in enumerate(goals):
                run = _Run(expectation, best, labels, towards, target, (r, number))
                self.method.search(run, start, centre, self.ball, self.steps)
        runs = self.restarts * len(goals)
        return Found(
            x=self.ball.finished(best.x, centre),
            centre=centre,
            margins=best.margins,
            losses=best.losses[: self.steps],
            gradients=runs * self.steps * self.draws,
            zero_gradients=best.zeros / (runs * self.steps * len(centre)),
        )

    def _check(self, logits: Tensor, labels: Tensor, target: Tensor | None) -> None:
        """Refuse what an attack cannot be run on.

        Raises:
            InputError: see `__call__`.
        """
        check_logits(logits)
        classes = logits.shape[1]
        for name, given in (("labels", labels), ("target", target)):
            if given is None:
                continue
            if given.shape != (len(logits),):
                raise InputError(
                    f"{name} must be one class for each of {len(logits)} points, but are {tuple(given.shape)}"
                )
            if bool(((given < 0) | (given >= classes)).any()):
                raise InputError(f"{name} are numbers of {classes} classes, but are {given.tolist()}")
        if target is not None and self.targets:
            raise InputError("targets chooses the classes to be reached itself; give it or a target")
        if self.targets >= classes:
            raise InputError(
                f"targets must be below {classes}, the number of classes, but is {self.targets}"
            )


class _Best:
    """The point of the lowest mean margin so far, for each item; and what the search met."""

    def __init__(self, centre: Tensor) -> None:
        self.x, self.margins = centre.clone(), torch.full_like(centre.flatten(1)[:, 0], torch.inf)
        self.losses: list[float] = []
        self.zeros = 0


@dataclass(frozen=True, eq=False)
class _Run:
    """The evaluations of one run."""

    expectation: Expectation
    best: _Best
    labels: Tensor
    towards: Tensor | None
    target: Tensor | None
    name: tuple[int, int]

    def __call__(self, x: Tensor, step: int) -> Estimate:
        found = self.expectation(x, self.labels, *self.name, step, towards=self.towards, target=self.target)
        best, better = self.best, found.margins < self.best.margins
        best.margins = torch.where(better, found.margins, best.margins)
        best.x = chosen(better, x, best.x)
        best.losses.append(float(found.values.mean()))
        best.zeros += int((found.gradient.flatten(1).abs().amax(1) == 0).sum())
        return found
