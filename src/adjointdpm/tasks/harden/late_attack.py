"""Attacks that begin late in the sampling, at clean images: at their latents, or at those noised to a time t.

    t = 0    c = x_0                                        G = decode
    t > 0    c = alpha_t x_0 + sigma_t eps                  G = the steps from t, decoded
    minimise over x in Ball(c):   m(G(x)),   m = z_y - max_{j != y} z_j         x_0: latents of the clean image

The whole sampling is a steep function of its noise, so that an attack on that takes many steps, each of all denoiser
calls. The decoder and the last steps are nearly linear beside it: one step from a random point of the ball finds much
of what many would (Wong, Rice and Kolter, 2020, arXiv 2001.03994), and is cheap enough for every step of a fine-tuning
to attack its own images.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..._types import Cond, InputError
from ...attacks.expectation import Estimate
from ...attacks.methods import PGD
from ...attacks.norm_ball import Ball
from ...flow.per_sample import chosen, normal_rows
from ...metrics import Margin
from ...metrics.image_classifier import Labelled as Named
from ...optimization.seeds import key
from ...samplers.base import Sampler
from ...samplers.flow_sampler import FlowSampler
from ...samplers.from_time import from_time, noised
from ..audit.settings import AuditSettings
from ..evaluation import example, predict
from ..sampling import parts, rows, saved
from .settings import HardenSettings

__all__ = ["LateAttack"]

# Lengths in radii: of the only step, that of Wong, Rice and Kolter; and of each of several.
_ONLY, _EACH = 1.25, 0.5


@dataclass(frozen=True, eq=False)
class LateAttack:
    """An attack on the first images of a dataset.

    Args:
        sampler: of the steps from t, or whose decoder is attacked.
        t: a share of the schedule's range.
        ball: around each of the points c.
        steps: number of steps of each attack.
        half: whether float32 is computed in bfloat16, by autocast.
        batch: number of images at once; all of them if None.
        count: number of images that are attacked.
        cond: of each of them; empty for t = 0, which calls no denoiser.
        judge: names what an image shows; None if all images show it.
    """

    sampler: FlowSampler
    t: float
    ball: Ball
    steps: int
    half: bool
    batch: int | None
    count: int
    cond: Cond
    judge: Named | None

    @classmethod
    def of(
        cls,
        sampler: Sampler,
        t: float,
        settings: HardenSettings,
        attack: AuditSettings,
        prompts: Sequence[str],
        judge: Named | None,
    ) -> "LateAttack":
        """Return the attack on the images of some prompts, after encoding an image.

        Args:
            sampler: of the images.
            t: a share of the schedule's range.
            settings: of the hardening.
            attack: names the ball and the number of images at once.
            prompts: of the images that are attacked.
            judge: names what an image shows; None if all images show it.

        Raises:
            InputError: the sampler is no `FlowSampler`, or its model cannot encode an image.
        """
        if not isinstance(sampler, FlowSampler):
            raise InputError(
                f"attacks from a time t begin at latents, which a {type(sampler).__name__} does not give; use a "
                "FlowSampler, or leave out t"
            )
        with torch.no_grad():
            sampler.model.encode_image(example(sampler)[None])
        late, cond = (from_time(sampler, t), sampler.encode(list(prompts))) if t else (sampler, Cond())
        steps, half, batch = settings.late_steps, settings.late_half, attack.train_batch_size
        return cls(late, t, attack.ball, steps, half, batch, len(prompts), cond, judge)

    def __call__(
        self, classifier: Named, images: Tensor, labels: Tensor, items: list[int], seed: int
    ) -> Tensor:
        """Return what the images become, as files hold them, where the judge recognizes it; the others as they are.

        Args:
            classifier: is attacked.
            images: (n, channels, height, width), in [0, 1].
            labels: (n,), of the classifier.
            items: the number of each image in the dataset.
            seed: of eps and of the first points.
        """
        found = images.clone()
        attacked = [place for place, item in enumerate(items) if item < self.count]
        for part in parts(len(attacked), self.batch):
            places = [attacked[i] for i in part]
            numbers = [items[place] for place in places]
            found[places] = self._found(classifier, images[places], labels[places], numbers, seed)
        if self.judge is None:
            return found
        says = predict(self.judge, found).argmax(1).tolist()
        names = [classifier.labels[label] for label in labels.tolist()]
        shown = [self.judge.labels[each] == name for each, name in zip(says, names, strict=True)]
        return chosen(torch.tensor(shown), found, images)

    def _found(
        self, classifier: Named, images: Tensor, labels: Tensor, items: list[int], seed: int
    ) -> Tensor:
        margin = Margin(classifier, labels)
        make, centre = self._begun(images, items, seed)
        lowest, best = torch.full_like(images[:, 0, 0, 0], torch.inf), images

        def evaluate(x: Tensor, step: int) -> Estimate:
            nonlocal lowest, best
            leaf, last = x.detach().requires_grad_(), step == self.steps
            with torch.set_grad_enabled(not last):
                with torch.autocast(x.device.type, torch.bfloat16, enabled=self.half):
                    made = make(leaf)
                made = made.to(images)
                margins = margin(made)
                slope = torch.zeros_like(x) if last else torch.autograd.grad(-margins.sum(), leaf)[0]
            margins = margins.detach()
            best = chosen(margins < lowest, made.detach(), best)
            lowest = torch.minimum(margins, lowest)
            return Estimate(-margins, margins, slope)

        drawn = normal_rows([key(seed, "start", item) for item in items], centre)
        start = self.ball.random(drawn, centre)
        method = PGD(_ONLY if self.steps == 1 else _EACH, 0.5)
        method.search(evaluate, start, centre, self.ball, self.steps + 1)
        return saved(best)

    def _begun(
        self, images: Tensor, items: list[int], seed: int
    ) -> tuple[Callable[[Tensor], Tensor], Tensor]:
        """Return G and c."""
        with torch.no_grad():
            latents = self.sampler.model.encode_image(images)
        if not self.t:
            return self.sampler.decode, latents
        cond = rows(self.cond, items)
        centre = noised(self.sampler, latents, [key(seed, "noise", item) for item in items])
        return lambda x: self.sampler(x, cond), centre
