"""`Purified`: a classifier behind diffusion purification, as one differentiable module."""

import math
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .._types import Cond, InputError, Stats
from ..optimization.seeds import key
from ..solvers.step_noise import NoiseOfItems
from .base import Sampler, for_batch
from .flow_sampler import FlowSampler
from .from_time import from_time, noised
from .pipeline_sampler import PipelineSampler

__all__ = ["Purified"]


class Purified(nn.Module):
    """A classifier that sees each image after it was noised to a time and denoised again.

        x_t = alpha_t x_0 + sigma_t eps,     x_0 the latents of the image
        x^  = the sampler's own steps from t to the clean end, decoded
        logits(image) = mean over votes of classifier(x^)

    Use it to audit a purification defence with its true gradient: it is that of the whole chain, noise and all steps
    included, by the sampler's adjoint and in its memory. Approximations of it (the identity in place of the chain, a
    few steps of it, an adjoint SDE that is solved anew) can make a defence look stronger than it is. Do not use it as
    a defence without such an audit.

    Each call draws fresh noise from torch's global generator, other noise for each image and vote. An attack then needs
    the mean over several draws, and its success is to be judged on fresh ones. With a seed each vote has one noise, the
    same for every image at any place of any batch, so that the module is one function of a single image. `stats` has
    the last call's cost, without the encoder's and the classifier's.

    Over a `PipelineSampler` it is the call of diffusers' own image-to-image pipeline, with its scheduler, its draw from
    the encoder's distribution, and a `strength` of steps / n, n the scheduler's number of steps: the nearest to t. A
    `FlowSampler` takes the mode of that distribution, and starts at t itself.

    Args:
        sampler: denoises: a `FlowSampler`, with any solver, stochastic ones included, and any adjoint; or a
            `PipelineSampler` over a text-to-image pipeline whose family has an image-to-image pipeline.
        classifier: images in [0, 1] to logits (batch, classes).
        t: how far images are noised, as a share of the schedule's range: 0 < t <= 1, DiffPure's t*.
        steps: number of denoising steps; t times the sampler's own by default, at least 1.
        votes: number of purifications of each image, of which the logits are averaged.
        cond: of the denoising, of one prompt; that of an empty prompt by default.
        seed: of all noise, so that each call is the same function; fresh noise for each call if None.

    Raises:
        InputError: a sampler of another kind, a pipeline without an image-to-image pipeline of its family, t outside
            (0, 1], steps or votes below 1; when called, images of another size, or a model that cannot encode an image.

    References:
        Nie et al., 2022, arXiv 2205.07460 (DiffPure).

    Examples:
        >>> import torch
        >>> import adjointdpm as adp
        >>> sampler = adp.load_bundled("emoji", steps=10)
        >>> defended = adp.Purified(sampler, adp.load_classifier("emoji/resnet"), t=0.2, seed=0)
        >>> image = torch.rand(1, 3, 64, 64).requires_grad_()
        >>> defended(image)[0, 0].backward()
        >>> image.grad.shape
        torch.Size([1, 3, 64, 64])
    """

    def __init__(
        self,
        sampler: Sampler,
        classifier: nn.Module,
        *,
        t: float = 0.1,
        steps: int | None = None,
        votes: int = 1,
        cond: Cond | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(sampler, FlowSampler | PipelineSampler):
            raise InputError(
                f"purification starts in the middle of the sampling, which a {type(sampler).__name__} cannot; use a "
                "FlowSampler, FlowSampler.from_pipeline(pipe) or PipelineSampler(pipe)"
            )
        if not 0 < t <= 1:
            raise InputError(f"t is a share of the schedule's range, above 0 and at most 1, but is {t}")
        for name, value in {"steps": steps, "votes": votes}.items():
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1, but is {value}")
        self.steps = max(1, round(t * sampler.steps)) if steps is None else steps
        self.sampler: FlowSampler | PipelineSampler
        if isinstance(sampler, FlowSampler):
            self.sampler = from_time(sampler, t, self.steps)
        else:
            sampler.check_image_to_image()
            fits = round(t * sampler.steps) == self.steps
            self.sampler = sampler if fits else sampler.replace(steps=round(self.steps / t))
        self.classifier, self.t, self.votes, self.seed = classifier, t, votes, seed
        self.cond = sampler.encode([""]) if cond is None else cond
        self.stats = Stats()

    def replace(
        self, *, sampler: Sampler | None = None, votes: int | None = None, seed: int | None = None
    ) -> "Purified":
        """Return a copy with other settings, which shares the weights; None leaves a setting as it is.

        Args:
            sampler: denoises, with the same model.
            votes: as in the constructor.
            seed: as in the constructor.
        """
        return Purified(
            self.sampler if sampler is None else sampler,
            self.classifier,
            t=self.t,
            steps=self.steps,
            votes=self.votes if votes is None else votes,
            cond=self.cond,
            seed=self.seed if seed is None else seed,
        )

    def forward(self, images: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch classes"]:
        """Return the mean logits of the votes.

        Args:
            images: (batch, 3, height, width), in [0, 1], of the sampler's size.
        """
        return self._votes(images).mean(0)

    def labels(self, images: Float[Tensor, "batch channels h w"]) -> Tensor:
        """Return the label that most votes give each image, (batch,); the smallest of several.

        Args:
            images: (batch, 3, height, width), in [0, 1], of the sampler's size.
        """
        with torch.no_grad():
            return self._votes(images).argmax(2).mode(0).values

    def purify(self, images: Float[Tensor, "batch channels h w"]) -> Tensor:
        """Return images after they were noised and denoised, with a graph to what they were before.

        Args:
            images: (batch, 3, height, width), in [0, 1], of the sampler's size.

        Raises:
            InputError: images of another size, or a model that cannot encode an image.
        """
        return self._purified(images, 1)

    def _purified(self, images: Tensor, votes: int) -> Tensor:
        """Return the images of each vote, those of the first one first."""
        sampler, number = self.sampler, len(images) * votes
        if tuple(images.shape[1:]) != tuple(sampler.image_shape):
            raise InputError(
                f"this sampler makes images of {tuple(sampler.image_shape)}, but {tuple(images.shape[1:])} are to "
                "be purified; resize them first, as a part of what is audited"
            )
        cond = for_batch(self.cond, number) if len(self.cond) else self.cond
        seeds = self._seeds(len(images), votes)
        if isinstance(sampler, PipelineSampler):
            repeated = images.repeat(votes, *[1] * (images.ndim - 1))
            purified = sampler.image_to_image(repeated, cond, strength=self.strength, seeds=seeds)
        else:
            latents = sampler.model.encode_image(images)
            latents = latents.repeat(votes, *[1] * (latents.ndim - 1))
            noisy = _with_noise(sampler, seeds)
            purified = noisy(noised(sampler, latents, seeds), cond)
            sampler.stats = noisy.stats
        self.stats = sampler.stats
        return purified

    @property
    def strength(self) -> float:
        """The share of the sampler's steps that are taken, of which image-to-image pipelines make their number."""
        n = self.sampler.steps
        near = (self.steps / n, math.nextafter(self.steps / n, 1))  # they round n * strength down or up
        return next((s for s in near if n * s == self.steps), near[0])

    def _seeds(self, images: int, votes: int) -> list[int]:
        """Return the seed of each vote's images."""
        if self.seed is None:
            return torch.randint(2**62, (images * votes,)).tolist()
        return [key(self.seed, vote) for vote in range(votes) for _ in range(images)]

    def _votes(self, images: Tensor) -> Tensor:
        """Return the logits of each vote, (votes, batch, classes)."""
        logits = self.classifier(self._purified(images, self.votes))
        return logits.unflatten(0, (self.votes, len(images)))


def _with_noise(sampler: FlowSampler, seeds: list[int]) -> FlowSampler:
    """Return the sampler, whose solver draws the noise of its steps from the seeds, if it draws any."""
    solver: Any = sampler.solver
    if is_dataclass(solver) and any(each.name == "noise" for each in fields(solver)):
        return sampler.replace(solver=replace(solver, noise=NoiseOfItems(seeds=tuple(seeds))))  # type: ignore[type-var]
    return sampler
