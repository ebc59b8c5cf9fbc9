"""Samplers: noise and a conditioning in, a picture out, differentiable throughout.

`Sampler` is the contract that everything above knows; `FlowSampler` is this library's own step loop,
with every solver, grid and adjoint.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ._types import Cond, InputError, Stats
from .adjoints import Adjoint, Checkpointed
from .fields import Field, PipelineField
from .flow import ProbabilityFlow
from .grids import Grid, TimeGrid, uniform
from .ivp import IVP
from .solvers import DPMSolverPP, Solver

__all__ = ["FlowSampler", "Sampler"]

Images = Float[Tensor, "batch 3 height width"]


class Sampler(nn.Module, ABC):
    """A module whose `forward` is a whole sampling, so that DDP and the like wrap it as any module."""

    stats: Stats
    """Of the newest call."""

    image_shape: tuple[int, ...]
    """(3, height, width) of one picture."""

    @abstractmethod
    def encode(self, prompts: Sequence[str] | str, negative: str = "") -> Cond:
        """The conditioning of one or more prompts, as tensors that can require a gradient."""

    @abstractmethod
    def noise(self, batch: int = 1, seed: int = 0) -> Float[Tensor, "batch *shape"]:
        """Standard normal noise in the latents' shape; the same for the same seed on any device."""

    @abstractmethod
    def forward(self, noise: Tensor, cond: Cond) -> Images:
        """Pictures (batch, 3, height, width) in [0, 1], not clamped: clamp only what you save.

        Args:
            noise: (batch, *shape), float32 or float64, standard normal; the dtype of all states.
            cond: from `encode`, for one prompt or as many as the batch.
        Raises:
            InputError: shapes or dtypes do not fit, or a gradient is asked that the adjoint does not make.
            NonFiniteError: the denoiser returned NaN or infinity; the message names the step.
        """

    @abstractmethod
    def replace(self, **changes: Any) -> "Sampler":
        """A copy with other settings, sharing the weights."""


class FlowSampler(Sampler):
    """Sampling by a solver of the probability-flow ODE, with the gradient that `adjoint` makes.

    Args:
        field: the model.
        solver: the scheme; DPM-Solver++(2M) by default.
        steps: N >= 1, number of steps.
        grid: how the N + 1 times are chosen, or the times themselves: a decreasing float64 vector in
            the network's unit, which gets a gradient if it requires one (then `steps` is not read).
        guidance_scale: w of classifier-free guidance, written into what `encode` returns; no guidance
            at w <= 1.
        adjoint: how the gradient is made; exact in the memory of one graph by default.
    Raises:
        InputError: steps < 1, or a grid that does not decrease or leaves the schedule.
    """

    def __init__(
        self,
        field: Field,
        *,
        solver: Solver | None = None,
        steps: int = 25,
        grid: Grid | Tensor = uniform,
        guidance_scale: float = 5.0,
        adjoint: Adjoint | None = None,
    ) -> None:
        super().__init__()
        self.field = field
        self.image_shape = field.image_shape
        self.solver = DPMSolverPP(order=2) if solver is None else solver
        self.steps, self.grid, self.guidance_scale = steps, grid, guidance_scale
        self.adjoint = Checkpointed() if adjoint is None else adjoint
        self.stats = Stats()
        self._time_grid = self._times()

    @classmethod
    def from_pipeline(
        cls,
        pipe: Any,
        *,
        split_guidance: bool = False,
        height: int | None = None,
        width: int | None = None,
        **settings: Any,
    ) -> "FlowSampler":
        """A sampler over a stock pipeline of diffusers, which shares its modules and is not changed.

        It takes what makes a picture from latents and a prompt (Stable Diffusion, XL and 3, Flux,
        PixArt, Sana, Z-Image, Qwen-Image and the like) or from noise alone (DDPM, DDIM). The network's
        steps are ours: the pipeline's scheduler only says what its model was trained for.

        Args:
            pipe: the pipeline.
            split_guidance: make two network calls of half the size a step, which halves the memory of
                one graph.
            height, width: of the picture; the pipeline's own by default.
            settings: those of `FlowSampler`. Of the pipeline's own: the default guidance scale, and for
                flow models the grid, with the shift for the resolution.
        Raises:
            InputError: the pipeline needs other inputs, or its scheduler has no known noise schedule.
        """
        field = PipelineField(pipe, split_guidance, height=height, width=width)
        return cls(field, **{"guidance_scale": field.guidance_scale, "grid": field.grid, **settings})

    def encode(self, prompts: Sequence[str] | str, negative: str = "") -> Cond:
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        if not prompts:
            raise InputError("encode needs at least one prompt, but the list is empty")
        return self.field.encode(prompts, negative, float(self.guidance_scale))

    def noise(self, batch: int = 1, seed: int = 0) -> Float[Tensor, "batch *shape"]:
        first = next(self.field.denoiser.parameters())
        dtype = torch.promote_types(first.dtype, torch.float32)
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(batch, *self.field.latent_shape, generator=generator, dtype=dtype)
        return noise.to(first.device)

    def forward(self, noise: Tensor, cond: Cond) -> Images:
        return self.decode(self.latents(noise, cond))

    def latents(self, noise: Tensor, cond: Cond) -> Tensor:
        """The latents at the grid's clean end, before decoding."""
        noise, cond = self._checked(noise, cond)
        grid = self._times() if self._time_grid.times.requires_grad else self._time_grid
        flow = ProbabilityFlow(self.field.schedule, self.field.denoiser)
        ivp = IVP(flow, self.solver, grid, flow.initial(noise, grid[0]), cond)
        self.stats = Stats()
        return flow.sample(self.adjoint.solve(ivp, self.stats), grid[len(grid)])

    def decode(self, latents: Tensor) -> Images:
        """Pictures of latents, the decoder's memory spared as the adjoint says."""
        weights = self.field.decoder_weights()
        return self.adjoint.decode(self.field.decode, latents, weights, self.stats)

    def replace(self, **changes: Any) -> "FlowSampler":
        settings = {
            "field": self.field,
            "solver": self.solver,
            "steps": self.steps,
            "grid": self.grid,
            "guidance_scale": self.guidance_scale,
            "adjoint": self.adjoint,
        }
        unknown = sorted(set(changes) - set(settings))
        if unknown:
            raise InputError(f"a FlowSampler has no {', '.join(unknown)}; it has {', '.join(settings)}")
        return FlowSampler(**{**settings, **changes})

    def times(self) -> Tensor:
        """The grid's N + 1 times, from noise to data, in the network's unit."""
        return self._times().times

    def _times(self) -> TimeGrid:
        if isinstance(self.grid, Tensor):
            return TimeGrid.checked(self.field.schedule, self.grid)
        return TimeGrid.checked(self.field.schedule, self.grid(self.field.schedule, self.steps))

    def _checked(self, noise: Tensor, cond: Cond) -> tuple[Tensor, Cond]:
        shape = self.field.latent_shape
        if tuple(noise.shape[1:]) != shape or noise.ndim != len(shape) + 1:
            raise InputError(
                f"noise must be (batch, {', '.join(map(str, shape))}), but is {tuple(noise.shape)}; "
                "make it with sampler.noise(batch, seed)"
            )
        if noise.dtype not in (torch.float32, torch.float64):
            raise InputError(
                f"noise carries the solver's state and must be float32 or float64, but is {noise.dtype}; "
                "the network may have any dtype"
            )
        tensors = {}
        for name, tensor in cond.items():
            if not tensor.is_floating_point() and name not in self.field.denoiser.masks:
                raise InputError(f"cond[{name!r}] must be floating point, but is {tensor.dtype}")
            if tensor.ndim and len(tensor) not in (1, len(noise)):
                raise InputError(
                    f"cond[{name!r}] is for a batch of {len(tensor)} and the noise for {len(noise)}; "
                    "give one prompt for all, or one for each"
                )
            wide = tensor.ndim and len(tensor) == 1 < len(noise)
            tensors[name] = tensor.expand(len(noise), *tensor.shape[1:]) if wide else tensor
        return noise, Cond(tensors)
