"""Attacks that begin near the end of the sampling, at clean images that were noised to a time t.

    c = alpha_t x_0 + sigma_t eps                           x_0: latents of the clean image
    minimise over x in Ball(c):   m(G_t(x)),   m = z_y - max_{j != y} z_j     G_t: the steps from t, decoded

The whole sampling is a steep function of its noise, so that an attack on that takes many steps, each of all denoiser
calls. The last few steps are nearly linear, and take few.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..._types import InputError
from ...attacks.attack import Attack
from ...attacks.methods import PGD
from ...files.images import as_8_bit
from ...metrics.image_classifier import Labelled as Named
from ...optimization.distributed import Processes
from ...optimization.progress import progress
from ...optimization.seeds import key
from ...samplers.base import Sampler
from ...samplers.flow_sampler import FlowSampler
from ...samplers.from_time import from_time, noised
from ..audit.attack import NoiseClassifier
from ..audit.settings import AuditSettings
from ..evaluation import example
from ..sampling import parts, rows
from .dataset import Labelled

__all__ = ["LateAttack"]


@dataclass(frozen=True, eq=False)
class LateAttack:
    """An attack of the last steps.

    Args:
        sampler: of `from_time`.
        settings: the ball, the steps, their length and momentum, and the images at once.
    """

    sampler: FlowSampler
    settings: AuditSettings

    @classmethod
    def of(cls, sampler: Sampler, t: float, settings: AuditSettings) -> "LateAttack":
        """Return the attack from t, a share of the schedule's range, after encoding an image.

        Raises:
            InputError: the sampler is no `FlowSampler`, or its model cannot encode an image.
        """
        if not isinstance(sampler, FlowSampler):
            raise InputError(
                f"attacks from a time t take the last steps alone, which a {type(sampler).__name__} cannot; use a "
                "FlowSampler, or leave out t"
            )
        with torch.no_grad():
            sampler.model.encode_image(example(sampler)[None])
        return cls(from_time(sampler, t), settings)

    def __call__(
        self, classifier: Named, clean: Labelled, prompts: Sequence[str], seed: int, quiet: bool
    ) -> Tensor:
        """Return what the images become, (n, channels, height, width), 8 bits; the same in all processes.

        Args:
            classifier: is attacked.
            clean: the images.
            prompts: of each.
            seed: of eps and of the attacks' first points.
            quiet: whether no progress is shown.
        """
        images, labels = clean.of(classifier)
        cond, s = self.sampler.encode(list(prompts)), self.settings
        found, processes = torch.zeros_like(images), Processes.here()
        mine = processes.part(range(len(images)))
        with progress("attack", len(mine), quiet) as bar:
            for places in parts(len(mine), s.train_batch_size):
                items = [mine[place] for place in places]
                given = rows(cond, items)
                with torch.no_grad():
                    latents = self.sampler.model.encode_image(images[items])
                centre = noised(self.sampler, latents, [key(seed, "noise", item) for item in items])
                attack = Attack(
                    ball=s.ball,
                    method=PGD(s.learning_rate, s.momentum),
                    steps=s.max_train_steps,
                    seed=key(seed, "attack", items[0]),
                )
                x = attack(NoiseClassifier(self.sampler, given, classifier), centre, labels[items]).x
                with torch.no_grad():
                    found[items] = as_8_bit(self.sampler(x, given)).to(found)
                bar.update(len(items))
        processes.sum_([found])
        return found.to(torch.uint8)
