"""The usual alternative to a metric: train the denoiser itself on one image.

min_theta  E_{t, eps} |F_theta(alpha x0 + sigma eps, t, c) - F*|^2

F* = eps | x0 | alpha eps - sigma x0 | eps - x0        what the network predicts; x0 the image's latents
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from ..._types import InputError, Time
from ...flow.denoisers import Prediction
from ...optimization.seeds import generator, key
from ...optimization.task import Losses, Task
from ...samplers.base import Sampler
from ...samplers.flow_sampler import FlowSampler
from .precision import scaled

__all__ = ["Denoise", "latents_of"]


def latents_of(sampler: Sampler, image: Tensor) -> Tensor:
    """Return an image (3, height, width) in [0, 1], resized, as latents (1, *shape) by the model's own encoder.

    Raises:
        InputError: the sampler is no FlowSampler, or its model cannot encode an image.
    """
    if not isinstance(sampler, FlowSampler):
        raise InputError("training on the denoising loss needs a FlowSampler; leave the comparison out")
    image = functional.interpolate(
        image[None], sampler.image_shape[1:], mode="bilinear", antialias=True, align_corners=False
    )
    with torch.no_grad():
        return sampler.model.encode_image(image)


class Denoise(Task):
    """The denoising loss on one image, with fresh times and noise a step.

    Args:
        sampler: whose network is trained.
        image: (3, height, width) in [0, 1].
        prompt: what the image is called; trained without guidance, as models are.
        leaves: what is trained.
        items: draws of time and noise a step.
        seed: of them.
    """

    def __init__(
        self,
        sampler: FlowSampler,
        image: Tensor,
        prompt: str,
        leaves: Mapping[str, Tensor],
        items: int = 4,
        seed: int = 0,
    ) -> None:
        self.sampler, self.variables, self.items, self.seed = sampler, leaves, items, seed
        self.x0 = latents_of(sampler, image)
        with torch.no_grad():
            self.cond = sampler.replace(guidance_scale=1.0, negative_prompt="").encode([prompt])

    def losses(self, step: int, items: list[int]) -> Losses:
        return self._of(f"step {step}", items)

    def validate(self, step: int) -> float:
        """Return the mean of sixteen draws that are the same each time."""
        with torch.no_grad():
            return float(self._of("validation", list(range(16))).values.mean())

    def _of(self, draw: str, items: list[int]) -> Losses:
        model = self.sampler.model
        schedule, denoiser = model.schedule, model.denoiser
        values = []
        for item in items:  # a denoiser takes one time a call
            u = torch.rand(1, generator=generator(self.seed, "denoise", draw, item), dtype=torch.float64)
            eps = self.sampler.noise(1, key(self.seed, "eps", draw, item))
            (time,) = schedule.at(schedule.end + u * (schedule.start - schedule.end))
            x = time.alpha * self.x0 + time.sigma * eps
            target = _target(denoiser.prediction, self.x0, eps, time)
            out = denoiser(x, time.t, self.cond)
            values.append((out - target).square().flatten(1).mean(1))
        network = denoiser if denoiser.network is None else denoiser.network
        return Losses(scaled(torch.cat(values), list(self.variables.values()), network))


def _target(prediction: Prediction, x0: Tensor, eps: Tensor, time: Time) -> Tensor:
    """Return what a network of this kind should predict."""
    match prediction:
        case Prediction.EPS:
            return eps
        case Prediction.X0:
            return x0
        case Prediction.V:
            return time.alpha * eps - time.sigma * x0
        case Prediction.VELOCITY:
            return eps - x0
