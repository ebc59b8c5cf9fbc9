"""Images to noise by a sampler whose steps are not inverted one by one: multistep solvers, and pipelines' schedulers.

    latents(noise, cond) = encode_image(images)         solved for the noise of the whole sampling

The sampling is the sampler's own. The model's flow, solved backwards on the times that the sampler visits, makes the
equation an easy one (see `adjoints.whole_inversion`).
"""

from dataclasses import replace
from typing import Protocol, runtime_checkable

from torch import Tensor

from .._types import Cond, InputError, Stats
from ..adjoints import Adjoint, Checkpointed
from ..adjoints.whole_inversion import WholeInverse
from ..solvers.integrate import IVP
from ..solvers.inversion import Backwards, InversionError

__all__ = ["SamplesLatents", "StartsFromLatents", "check_images", "inverted", "whole_inverse"]


def check_images(images: Tensor, shape: tuple[int, ...]) -> None:
    """Raise unless there are images of a size.

    Args:
        images: what is to be inverted.
        shape: of one image.

    Raises:
        InputError: there are none, or they have another size.
    """
    if tuple(images.shape[1:]) != shape or not len(images):
        raise InputError(
            f"this sampler makes images of {shape}, but {tuple(images.shape)} are to be inverted; give (batch, "
            "channels, height, width), resized to that"
        )


@runtime_checkable
class SamplesLatents(Protocol):
    """A sampler that returns latents before it decodes them."""

    stats: Stats

    def latents(self, noise: Tensor, cond: Cond) -> Tensor:
        """The latents at the clean end of a sampling."""
        ...

    def replace(self, *, adjoint: Adjoint | None = None) -> "SamplesLatents":
        """A copy with another adjoint."""
        ...


@runtime_checkable
class StartsFromLatents(Protocol):
    """A sampler of this library's own steps, which knows its flow."""

    def problem_from(self, latents: Tensor, cond: Cond) -> tuple[IVP, Tensor]:
        """The problem of a sampling whose initial state is the clean state of latents, and the factor to noise."""
        ...


def inverted(
    sampler: SamplesLatents,
    flow: StartsFromLatents,
    latents: Tensor,
    cond: Cond,
    tolerance: float,
    instead: str,
) -> tuple[Tensor, Stats]:
    """Return the noise from which a sampler arrives at latents, differentiable, and the record of it.

    Args:
        sampler: makes the sampling, without noise in its steps.
        flow: the same model with this library's own steps, on the times that the sampler visits; it gives the guess.
        latents: (batch, *latent_shape), with their graph.
        cond: the conditioning.
        tolerance: the largest accepted distance of the sampling's end from the latents, as a fraction of their norm.
        instead: what to try where the iteration does not converge, for the message.

    Returns:
        noise, (batch, *latent_shape), and the calls of the inversion, with the distance in `drift`.

    Raises:
        InversionError: the iteration does not reach the tolerance.
    """
    stats = Stats()
    inverse = whole_inverse(sampler, flow, cond, stats)
    y, away = inverse.found(latents, tolerance)
    stats.drift = float(away.max())
    if not stats.drift <= tolerance:
        raise InversionError(
            f"the inversion did not converge to tolerance = {tolerance:g}: sampling from the noise that was found, "
            f"through all steps to the last, leaves a residual of {stats.drift:.1e} of the latents' norm. Take more "
            f"steps, a lower guidance scale, a larger tolerance, or {instead}"
        )
    return inverse.noise(y, latents), stats


def whole_inverse(
    sampler: SamplesLatents, flow: StartsFromLatents, cond: Cond, stats: Stats
) -> WholeInverse:
    """Make the equation of an inversion: the sampling, and the flow backwards.

    Args:
        sampler: as in `inverted`.
        flow: likewise.
        cond: the conditioning.
        stats: counts the calls.

    Returns:
        the equation.
    """
    exact = sampler.replace(adjoint=Checkpointed())

    def sampling(noise: Tensor) -> Tensor:
        end = exact.latents(noise, cond)
        stats.nfe_forward += exact.stats.nfe_forward
        return end

    def backwards(clean: Tensor) -> Tensor:
        problem, prior = flow.problem_from(clean, cond)
        reverse = replace(problem, grid=problem.grid.reversed(), solver=Backwards())
        return Checkpointed().solve(reverse, stats) * prior

    return WholeInverse(sampling, backwards)
