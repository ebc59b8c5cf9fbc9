"""Samplers: noise and a conditioning in, a image out, differentiable throughout.

`Sampler` is the contract that everything above knows; `FlowSampler` is this library's own step loop,
with every solver, grid and adjoint.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .._types import Cond, InputError, Stats, in_range
from ..adjoints import Adjoint, Checkpointed
from ..adjoints.base import wants_gradient
from ..adjoints.inversion import inverse
from ..adjoints.likelihood import LogLikelihood, check_likelihood, log_likelihood
from ..adjoints.null_text import check_null_text, checked_null_texts, unguided
from ..flow.denoisers import weight_of
from ..flow.grids import Grid, TimeGrid, uniform
from ..flow.influence import Influence, reached
from ..flow.model import DiffusionModel, check_model
from ..flow.probability_flow import ProbabilityFlow
from ..pipelines.checks import followed
from ..pipelines.pipeline_model import PipelineModel
from ..pipelines.prompt_encoding import encoded
from ..solvers import Coupled, DPMSolverPP, Solver
from ..solvers.integrate import IVP
from ..solvers.inversion import check_invertible, coupled_inverse
from .base import Images, Sampler, check_cond, check_noise, for_batch, listed, normal, with_scale
from .inversion import check_images, inverted

__all__ = ["FlowSampler"]


class FlowSampler(Sampler):
    """Sampling by a solver of the probability-flow ODE, with the gradient that `adjoint` makes.

    Args:
        model: the model.
        solver: the scheme; DPM-Solver++(2M) by default.
        steps: N >= 1, number of steps.
        grid: how the N + 1 times are chosen, or the times themselves: a decreasing float64 vector in
            the network's unit, which gets a gradient if it requires one (then `steps` is not read).
        guidance_scale: w of classifier-free guidance; no guidance at w <= 1.
        negative_prompt: what `encode` guides away from where it is given no other.
        adjoint: how the gradient is made; exact in the memory of one graph by default.

    Raises:
        InputError: steps < 1, or a grid that does not decrease or leaves the schedule.
    """

    solver: Solver
    steps: int
    guidance_scale: float
    adjoint: Adjoint

    settings = ("model", "solver", "steps", "grid", "guidance_scale", "negative_prompt", "adjoint")

    def __init__(
        self,
        model: DiffusionModel,
        *,
        solver: Solver | None = None,
        steps: int = 25,
        grid: Grid | Tensor = uniform,
        guidance_scale: float = 5.0,
        negative_prompt: str = "",
        adjoint: Adjoint | None = None,
    ) -> None:
        super().__init__()
        check_model(model)
        self.model = model
        self.image_shape, self.pipe = model.image_shape, model.pipe
        self.solver = DPMSolverPP(order=2) if solver is None else solver
        self.steps, self.grid, self.guidance_scale = steps, grid, guidance_scale
        self.negative_prompt = negative_prompt
        self.adjoint = Checkpointed() if adjoint is None else adjoint
        self.stats = Stats()
        self._time_grid = self._times()
        self._measured: tuple[torch.Size, int] | None = None

    @classmethod
    def from_pipeline(
        cls,
        pipe: Any,
        *,
        split_guidance: bool = False,
        height: int | None = None,
        width: int | None = None,
        solver: Solver | None = None,
        steps: int = 25,
        grid: Grid | Tensor | None = None,
        guidance_scale: float | None = None,
        negative_prompt: str = "",
        adjoint: Adjoint | None = None,
    ) -> "FlowSampler":
        """A sampler over a stock pipeline of diffusers, which shares its modules and is not changed.

        It supports pipelines that make an image from latents and a prompt (Stable Diffusion, XL and 3, Flux, PixArt,
        Sana, Z-Image, Qwen-Image and the like) or from noise alone (DDPM, DDIM). The steps are this library's own: the
        pipeline's scheduler only determines the noise schedule and what the network predicts.

        Args:
            pipe: the pipeline.
            split_guidance: whether guidance makes two evaluations of half the size a step, which halves the memory of
                one graph.
            height: of the image, in pixels; the pipeline's own by default.
            width: likewise.
            solver: as in `FlowSampler`.
            steps: as in `FlowSampler`.
            adjoint: as in `FlowSampler`.
            grid: as in `FlowSampler`; of a flow model the pipeline's own by default, with the shift for the
                resolution.
            guidance_scale: as in `FlowSampler`; the pipeline's own by default.
            negative_prompt: as in `FlowSampler`.

        Returns:
            the sampler.

        Raises:
            InputError: the pipeline needs other inputs, or its scheduler has no known noise schedule.
        """
        model = PipelineModel(pipe, split_guidance, height=height, width=width)
        return cls(
            model,
            solver=solver,
            steps=steps,
            grid=model.grid if grid is None else grid,
            guidance_scale=model.guidance_scale if guidance_scale is None else guidance_scale,
            negative_prompt=negative_prompt,
            adjoint=adjoint,
        )

    def replace(
        self,
        *,
        model: DiffusionModel | None = None,
        solver: Solver | None = None,
        steps: int | None = None,
        grid: Grid | Tensor | None = None,
        guidance_scale: float | None = None,
        negative_prompt: str | None = None,
        adjoint: Adjoint | None = None,
    ) -> "FlowSampler":
        """Return a copy with other settings, which shares the weights; None leaves a setting as it is.

        Args:
            model: as in the constructor.
            solver: as in the constructor.
            steps: as in the constructor.
            grid: as in the constructor.
            guidance_scale: as in the constructor.
            negative_prompt: as in the constructor.
            adjoint: as in the constructor.

        Returns:
            the copy.
        """
        return self._replaced(
            model=model,
            solver=solver,
            steps=steps,
            grid=grid,
            guidance_scale=guidance_scale,
            negative_prompt=negative_prompt,
            adjoint=adjoint,
        )

    def encode(
        self, prompts: Sequence[str] | str, negative: str | None = None, graph: bool = False
    ) -> Cond:
        texts, w = listed(prompts), float(self.guidance_scale)
        avoided = self.negative_prompt if negative is None else negative
        return encoded(self.pipe, lambda: self.model.encode(texts, avoided, w), graph)

    def with_guidance(self, cond: Cond) -> Cond:
        return with_scale(cond, self.model.denoiser.guidance, self.guidance_scale)

    def noise(self, batch: int = 1, seed: int = 0) -> Float[Tensor, "batch *shape"]:
        return normal((batch, *self.model.latent_shape), seed, weight_of(self.model.denoiser))

    def forward(self, noise: Tensor, cond: Cond) -> Images:
        return self.decode(self._latents(noise, cond, decoded=True))

    def latents(self, noise: Tensor, cond: Cond, decoded: bool = False) -> Tensor:
        """The latents at the grid's clean end, before decoding.

        Args:
            noise: as in `forward`.
            cond: as in `forward`.
            decoded: whether `decode` follows, for which a budget of memory then leaves room.

        Returns:
            the latents, (batch, *latent_shape).
        """
        return self._latents(noise, cond, decoded)

    def problem(self, noise: Tensor, cond: Cond) -> IVP:
        """The initial value problem that a sampling solves, for a method that takes its steps one by one.

        Args:
            noise: as in `forward`.
            cond: as in `forward`.

        Returns:
            the problem, its conditioning with the guidance scale and a row for each sample.

        Raises:
            InputError: as in `forward`.
        """
        noise, cond = self._checked(noise, cond)
        grid = self._times() if self._time_grid.times.requires_grad else self._time_grid
        flow = ProbabilityFlow(self.model.schedule, self.model.denoiser)
        return IVP(flow, self.solver, grid, flow.initial(noise, grid[0]), cond)

    def solved(self, problem: IVP, decoded: bool = False) -> Tensor:
        """The latents at the end of a problem, with the gradient that `adjoint` makes.

        It is what `latents` does, for a method that begins at a state in the middle of a sampling, or takes other steps
        from there: `problem` of this sampler with its `initial`, `grid` and `solver` exchanged.

        Args:
            problem: from `problem`, or a copy with other values.
            decoded: as in `latents`.

        Returns:
            the latents, (batch, *latent_shape).

        Raises:
            InputError: the adjoint cannot give a gradient that is required.
            NonFiniteError: the denoiser returned NaN or infinity.

        Examples:
            >>> from dataclasses import replace
            >>> import torch
            >>> import adjointdpm as adp
            >>> sampler = adp.load_bundled("emoji", steps=2)
            >>> noise, cond = sampler.noise(), sampler.encode("a cat")
            >>> coarse = replace(sampler.problem(noise, cond), solver=adp.Euler())
            >>> torch.equal(sampler.solved(coarse), sampler.replace(solver=adp.Euler()).latents(noise, cond))
            True
        """
        return self._solved(problem, problem.cond, decoded)

    def _latents(self, noise: Tensor, cond: Cond, decoded: bool = False) -> Tensor:
        return self._solved(self.problem(noise, cond), cond, decoded)

    def _solved(self, ivp: IVP, given: Cond, decoded: bool) -> Tensor:
        flow, grid, cond, z = ivp.flow, ivp.grid, ivp.cond, ivp.initial
        wanted = {name for name, tensor in cond.items() if tensor.requires_grad}
        influence = Influence(wanted, self.model.denoiser) if wants_gradient(ivp) else None
        ivp = replace(ivp, influence=influence)
        self.model.check(z, cond, influence is not None and bool(wanted or z.requires_grad))
        allowance = self.adjoint.decoder_allowance(ivp) if decoded else None
        self.stats = Stats(reserved=0 if allowance is None else self._decoding(z, allowance))
        final = self.adjoint.solve(ivp, self.stats)
        if influence is not None:
            influence.check()
        latents = flow.sample(final, grid[len(grid)])
        followed_by_name = {f"cond[{name!r}]": tensor for name, tensor in given.items()}
        self.adjoint.guard(latents, {"denoiser": self.model.denoiser}, followed_by_name)
        return latents

    def invert(self, images: Images, cond: Cond, *, tolerance: float = 1e-3) -> Tensor:
        """Return the noise from which this sampler makes given images, differentiable.

            latents(invert(images)) = encode_image(images)        to the tolerance

        The steps of a one-step solver are inverted themselves, from data to noise: step(z_i) = z_{i+1} is solved for
        z_i by an accelerated fixed point and Newton's method. So it holds with guidance, unlike the usual one of DDIM,
        which replaces z_i by z_{i+1} in the network. The sampling of a multistep solver is inverted as a whole, by the
        same iterations. `stats` has the calls, and in `drift` the distance at which a sampling from the noise ends.
        Use it to edit an image, or to begin an optimization at it. The image comes back as the autoencoder gives it
        back. At high guidance some images are not in the sampler's reach at all; Heun() reaches the most. The gradient
        is that of the implicit function theorem.

        Args:
            images: (batch, *image_shape), in [0, 1].
            cond: from `encode`, for one prompt or for as many as the batch.
            tolerance: the largest accepted distance of the sampling's end from the latents, as a fraction of their
                norm, above 0.

        Returns:
            noise, (batch, *latent_shape), of the kind that `forward` takes. Its norm need not be that of random noise.

        Raises:
            InputError: images of another size, a model that cannot encode an image, or a solver that is stochastic or
                `Coupled`.
            InversionError: it does not converge; the message names the step, the residual, and what to change.

        References:
            Song et al., 2021, arXiv 2010.02502 (inversion of DDIM); Pan et al., 2023, arXiv 2309.04907 (fixed point);
            Stetter, 1978, Numerische Mathematik 29 (defect correction).

        Examples:
            >>> import adjointdpm as adp
            >>> sampler = adp.load_bundled("emoji", steps=10, solver=adp.Heun(), guidance_scale=1.0)
            >>> cond = sampler.encode("a cat")
            >>> image = sampler(sampler.noise(), cond).clamp(0, 1)
            >>> noise = sampler.invert(image, cond)
            >>> latents = sampler.model.encode_image(image)
            >>> bool((sampler.latents(noise, cond) - latents).norm() < 1e-3 * latents.norm())
            True
        """
        in_range("tolerance", tolerance, 0, open_low=True)
        check_invertible(self.solver)
        if not self.solver.one_step:
            latents, instead = self._latents_of(images), "a one-step solver of second order (Heun())"
            noise, self.stats = inverted(self, self, latents, cond, tolerance, instead)
            return noise
        ivp, prior = self.backwards(images, cond)
        self.stats = Stats()
        return inverse(ivp, self.stats, tolerance) * prior

    def invert_coupled(self, images: Images, cond: Cond) -> "tuple[Tensor, FlowSampler]":
        """Return the noise of given images under a `Coupled` solver, and the sampler that comes back from it.

        The inverse of a coupled step is explicit, so this needs no iteration, converges at any guidance, and is exact
        to rounding. A coupled solver carries two states, and both are needed: the noise is the first, and the returned
        sampler's solver holds the second. The gradient is plain autograd's through the inverse steps, with all their
        graphs in memory. The noise is less like random noise than that of `invert`, and the sampler serves these images
        alone.

        Args:
            images: (batch, *image_shape), in [0, 1].
            cond: from `encode`, for one prompt or for as many as the batch.

        Returns:
            noise, (batch, *latent_shape), and the sampler.

        Raises:
            InputError: another solver, images of another size, or a model that cannot encode an image.

        References:
            Wallace et al., 2023, arXiv 2211.12446 (EDICT); McCallum and Foster, 2024, arXiv 2410.11648.

        Examples:
            >>> import torch
            >>> import adjointdpm as adp
            >>> sampler = adp.load_bundled("emoji", steps=10, solver=adp.Coupled(adp.Euler()))
            >>> image, cond = torch.rand(1, 3, 64, 64), sampler.encode("a cat")
            >>> noise, back = sampler.invert_coupled(image, cond)
            >>> bool((back.latents(noise, cond) - sampler.model.encode_image(image)).abs().max() < 0.1)
            True
        """
        solver = self.solver
        if not isinstance(solver, Coupled):
            raise InputError(
                f"invert_coupled is for Coupled solvers, but the sampler's is {solver!r}; use invert, or "
                "sampler.replace(solver=Coupled(Euler()))"
            )
        ivp, prior = self.backwards(images, cond)
        self.stats = Stats(nfe_forward=ivp.calls)
        y, w = coupled_inverse(
            lambda state, time: (ivp.velocity(state[0], time),), ivp.initial, ivp.grid, solver
        )
        return y * prior, self.replace(solver=replace(solver, second=w))

    def invert_null_text(
        self, images: Images, cond: Cond, *, iterations: int = 10, tolerance: float = 0.05
    ) -> "tuple[Tensor, FlowSampler]":
        """Return the noise of given images at guidance 1, and a sampler that leads from it to them with guidance.

            null_i = argmin |z*_{i+1} - S_i(z_i; null)|^2,     z_{i+1} = S_i(z_i; null_i),     z_0 = z*_0

        The steps at guidance 1 are inverted, to the states z*_i and noise that is nearly random noise. The negative
        embedding of each step, of each image its own, is then optimized so that the guided step stays with them. The
        returned sampler holds these embeddings in place of that of a conditioning. Use it to edit images: it takes any
        prompt and every adjoint, for these images together and in this order, on these steps. There is no gradient to
        the images. With the prompt that is inverted as the negative one, a sampling returns without optimization.

        Args:
            images: (batch, *image_shape), in [0, 1].
            cond: from `encode`, for one prompt or for as many as the batch, with negative embeddings.
            iterations: the most iterations in each step, at least 1; each is a denoiser call forward and one backward.
            tolerance: the largest accepted distance of the sampling's end from the latents, as a fraction of their
                norm, above 0.

        Returns:
            noise, (batch, *latent_shape), and the sampler. `stats` has the calls, and in `drift` the distance.

        Raises:
            InputError: a solver that is stochastic, multistep, `Coupled`, or evaluates the end of a step, as Heun(); no
                guidance; images of another size; a model that cannot encode an image; or a gradient is required.
            InversionError: it does not converge.

        References:
            Mokady et al., 2022, arXiv 2211.09794; Miyake et al., 2023, arXiv 2305.16807 (negative-prompt inversion).

        Examples:
            >>> import adjointdpm as adp
            >>> sampler = adp.load_bundled("emoji", steps=4, solver=adp.Euler(), guidance_scale=2.0)
            >>> cond = sampler.encode("a cat")
            >>> image = sampler.replace(guidance_scale=1.0)(sampler.noise(), cond).clamp(0, 1)
            >>> noise, back = sampler.invert_null_text(image, cond, tolerance=0.2)
            >>> latents = sampler.model.encode_image(image)
            >>> bool((back.latents(noise, cond) - latents).norm() < 0.2 * latents.norm())
            True
        """
        in_range("iterations", iterations, 1)
        in_range("tolerance", tolerance, 0, open_low=True)
        latents, denoiser = self._latents_of(images), self.model.denoiser
        ivp, prior = self.problem_from(latents, cond)
        check_null_text(ivp, images)
        free = replace(ivp, cond=unguided(ivp.cond, denoiser.guidance))
        self.stats = Stats()
        found = checked_null_texts(ivp, free, self.stats, iterations, tolerance)
        return found.start * prior, self.replace(model=self.model.with_denoiser(found.denoiser))

    def log_likelihood(
        self,
        images: Images,
        cond: Cond,
        *,
        probes: int | None = 4,
        seed: int = 0,
        solver: Solver | None = None,
    ) -> LogLikelihood:
        """Return log p(image | cond) under the probability flow, with its standard error; differentiable.

            log p(x) = log N(noise; 0, I) - log |d x / d noise|,     the last by the integral of the flow's divergence

        Of a model with an autoencoder it is the density of the latents. The density is that of the samples of the
        continuous flow at the grid's clean end, so it converges with the number of steps at the order of `solver`.
        Compare prompts at guidance 1 and with the same seed: the probes are the same, and most of their error cancels.
        A gradient is plain autograd's, with the graphs of all calls in memory.

        Args:
            images: (batch, *image_shape), in [0, 1].
            cond: from `encode`, for one prompt or for as many as the batch.
            probes: number of Hutchinson's probes, at least 1, each one product a call; None for the exact divergence,
                which takes as many products as there are dimensions.
            seed: of the probes.
            solver: of the ODE; Heun() by default, whatever the sampler's own is.

        Returns:
            LogLikelihood: the values in nats and in bits per dimension, their standard errors, and the noise.

        Raises:
            InputError: no probes; a solver that adds noise; images of another size; a model that cannot encode an
                image; or a grid that ends at sigma = 0, where the network was not trained.

        References:
            Song et al., 2021, arXiv 2011.13456, section 4.3.

        Examples:
            >>> import torch
            >>> import adjointdpm as adp
            >>> sampler = adp.load_bundled("emoji", steps=4, guidance_scale=1.0)
            >>> found = sampler.log_likelihood(torch.rand(2, 3, 64, 64), sampler.encode("a cat"), probes=2)
            >>> found.value.shape, found.bits_per_dimension.shape
            (torch.Size([2]), torch.Size([2]))
        """
        check_likelihood(solver, probes)
        ivp, prior = self.backwards(images, cond)
        self.stats = Stats()
        return log_likelihood(ivp, prior, solver, probes, seed, self.stats)

    def backwards(self, images: Tensor, cond: Cond) -> tuple[IVP, Tensor]:
        """Return the problem of a sampling whose `initial` is the clean state of images, for inverting it.

        Args:
            images: (batch, *image_shape), in [0, 1].
            cond: from `encode`.

        Returns:
            the problem, and the factor from its first state to noise.

        Raises:
            InputError: images of another size, or a model that cannot encode an image.
        """
        return self.problem_from(self._latents_of(images), cond)

    def _latents_of(self, images: Tensor) -> Tensor:
        check_images(images, tuple(self.image_shape))
        return self.model.encode_image(images)

    def problem_from(self, latents: Tensor, cond: Cond) -> tuple[IVP, Tensor]:
        """Like `backwards`, from the latents of images.

        Args:
            latents: (batch, *latent_shape), at the clean end.
            cond: from `encode`.

        Returns:
            the problem, and the factor from its first state to noise.

        Raises:
            InputError: as in `backwards`.
        """
        latents, cond = self._checked(latents, cond)
        grid = self._times()
        last, first = grid[len(grid)], grid[0]
        if last.scale == 0:
            raise InputError(
                "the grid ends where the schedule has no signal, so no image is there to invert"
            )
        flow = ProbabilityFlow(self.model.schedule, self.model.denoiser)
        ivp = IVP(flow, self.solver, grid, latents / last.scale, cond)
        return ivp, first.scale / self.model.schedule.prior_std(first.t)

    def _decoding(self, noise: Tensor, allowance: float) -> int:
        """Bytes that the decoder's backward pass will hold, measured by one decoding for each shape."""
        if self._measured is None or self._measured[0] != noise.shape or self._measured[1] > allowance:
            stats = Stats()
            grey, weights = torch.zeros_like(noise).requires_grad_(), self.model.decoder_weights()
            self.adjoint.decode(self.model.decode, grey, weights, stats)
            self._measured = (noise.shape, stats.decoder)
        return self._measured[1]

    def decode(self, latents: Tensor) -> Images:
        """Decode latents; the adjoint decides how the decoder's graph is held.

        Args:
            latents: (batch, *latent_shape), at the clean end.

        Returns:
            images (batch, channels, height, width), nominally in [0, 1], not clamped.

        Raises:
            InputError: the images do not depend on the latents, because the model's decoder cuts the graph.
        """
        image = self.adjoint.decode(self.model.decode, latents, self.model.decoder_weights(), self.stats)
        wanted = {"latents": latents} if torch.is_grad_enabled() and latents.requires_grad else {}
        if wanted and not reached([image], wanted, until=[latents]):
            raise InputError(
                f"the image does not depend on the latents: {type(self.model).__name__}.decode cuts the graph (a "
                "detach, a no_grad or numpy inside it); use differentiable operations alone"
            )
        self.adjoint.guard(image, self.model.decoders(), {})
        return image

    @property
    def network(self) -> nn.Module | None:
        """The network inside the denoiser."""
        return self.model.denoiser.network

    @property
    def length(self) -> int:
        """The number of steps of the time grid."""
        return len(self._time_grid)

    def times(self) -> Tensor:
        """The grid's N + 1 times, from noise to data, in the network's unit."""
        return self._times().times

    def _times(self) -> TimeGrid:
        schedule = self.model.schedule
        times = self.grid if isinstance(self.grid, Tensor) else self.grid(schedule, self.steps)
        return TimeGrid.checked(schedule, times)

    def _checked(self, noise: Tensor, cond: Cond) -> tuple[Tensor, Cond]:
        check_noise(noise, tuple(self.model.latent_shape))
        check_cond(cond, self.model.denoiser.masks)
        self.model.check_guidance(cond, self.guidance_scale)
        return noise, for_batch(followed(self.with_guidance(cond)), len(noise))
