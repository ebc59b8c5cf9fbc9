"""Samplers: noise and a conditioning in, a picture out, differentiable throughout.

`Sampler` is the contract that everything above knows; `FlowSampler` is this library's own step loop,
with every solver, grid and adjoint.
"""

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, ClassVar, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ._types import Cond, InputError, Stats
from .adjoints import Adjoint, Checkpointed, TooLargeError
from .fields import Field, PipelineField
from .flow import ProbabilityFlow
from .grids import Grid, TimeGrid, uniform
from .ivp import IVP
from .solvers import DPMSolverPP, Solver

__all__ = ["FlowSampler", "Sampler", "check_noise", "for_batch", "listed", "normal"]

Images = Float[Tensor, "batch 3 height width"]

Self = TypeVar("Self", bound="Sampler")


class Sampler(nn.Module, ABC):
    """A module whose `forward` is a whole sampling, so that DDP and the like wrap it as any module."""

    stats: Stats
    """Of the newest call."""

    image_shape: tuple[int, ...]
    """(3, height, width) of one picture."""

    settings: ClassVar[tuple[str, ...]]
    """What `replace` can exchange: arguments of the constructor, kept as attributes of the same names."""

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

    def replace(self: Self, **changes: Any) -> Self:
        """A copy with other settings, sharing the weights."""
        unknown = sorted(set(changes) - set(self.settings))
        if unknown:
            raise InputError(
                f"a {type(self).__name__} has no {', '.join(unknown)}; it has {', '.join(self.settings)}"
            )
        return type(self)(**{**{name: getattr(self, name) for name in self.settings}, **changes})


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

    settings = ("field", "solver", "steps", "grid", "guidance_scale", "adjoint")

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
        self._measured: tuple[torch.Size, int, int | None] | None = None

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
        return self.field.encode(listed(prompts), negative, float(self.guidance_scale))

    def noise(self, batch: int = 1, seed: int = 0) -> Float[Tensor, "batch *shape"]:
        return normal((batch, *self.field.latent_shape), seed, next(self.field.denoiser.parameters()))

    def forward(self, noise: Tensor, cond: Cond) -> Images:
        return self.decode(self._latents(noise, cond, decoded=True))

    def latents(self, noise: Tensor, cond: Cond) -> Tensor:
        """The latents at the grid's clean end, before decoding."""
        return self._latents(noise, cond)

    def _latents(self, noise: Tensor, cond: Cond, decoded: bool = False) -> Tensor:
        given = {f"cond[{name!r}]": tensor for name, tensor in cond.items()}
        noise, cond = self._checked(noise, cond)
        grid = self._times() if self._time_grid.times.requires_grad else self._time_grid
        flow = ProbabilityFlow(self.field.schedule, self.field.denoiser)
        ivp = IVP(flow, self.solver, grid, flow.initial(noise, grid[0]), cond)
        room = self.adjoint.room(ivp) if decoded else None
        reserved, tile = (0, None) if room is None else self._decoding(noise, room)
        self.stats = Stats(reserved=reserved, tile=tile)
        latents = flow.sample(self.adjoint.solve(ivp, self.stats), grid[len(grid)])
        self.adjoint.guard(latents, {"denoiser": self.field.denoiser}, given)
        return latents

    def _decoding(self, noise: Tensor, room: float) -> tuple[int, int | None]:
        """What the decoder's backward pass will hold, and in tiles of what side: one decoding, once a shape."""
        if self._measured is None or self._measured[0] != noise.shape or self._measured[1] > room:
            grey, weights = torch.zeros_like(noise).requires_grad_(), self.field.decoder_weights()
            ways, tile, stats = {None: self.field.decode, **self.field.tiled()}, None, Stats()
            for tile, decode in ways.items():
                stats, last = Stats(), tile == list(ways)[-1]
                # The last way is measured to its end: a refusal says what is missing.
                with suppress(TooLargeError):
                    self.adjoint.decode(decode, grey, weights, stats, math.inf if last else room)
                    self._measured = (noise.shape, stats.decoder, tile)
                    break
            if tile is not None and stats.decoder <= room:
                warnings.warn(
                    f"the decoder does not fit into the budget as a whole, so it decodes in tiles of {tile} latents "
                    "a side, which changes the picture a little where they meet",
                    stacklevel=4,
                )
        assert self._measured is not None
        return self._measured[1:]

    def decode(self, latents: Tensor) -> Images:
        """Pictures of latents, the decoder's memory spared as the adjoint says."""
        weights, tile = self.field.decoder_weights(), self.stats.tile
        decode = self.field.decode if tile is None else self.field.tiled()[tile]
        images = self.adjoint.decode(decode, latents, weights, self.stats)
        self.adjoint.guard(images, self.field.decoders(), {})
        return images

    @property
    def length(self) -> int:
        """Number of steps of the grid in use."""
        return len(self._time_grid)

    def times(self) -> Tensor:
        """The grid's N + 1 times, from noise to data, in the network's unit."""
        return self._times().times

    def _times(self) -> TimeGrid:
        if isinstance(self.grid, Tensor):
            return TimeGrid.checked(self.field.schedule, self.grid)
        return TimeGrid.checked(self.field.schedule, self.grid(self.field.schedule, self.steps))

    def _checked(self, noise: Tensor, cond: Cond) -> tuple[Tensor, Cond]:
        check_noise(noise, self.field.latent_shape)
        for name, tensor in cond.items():
            if not tensor.is_floating_point() and name not in self.field.denoiser.masks:
                raise InputError(f"cond[{name!r}] must be floating point, but is {tensor.dtype}")
        return noise, for_batch(cond, len(noise))


def listed(prompts: Sequence[str] | str) -> list[str]:
    """Prompts as a list of at least one."""
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    if not prompts:
        raise InputError("encode needs at least one prompt, but the list is empty")
    return prompts


def normal(shape: tuple[int, ...], seed: int, like: Tensor) -> Tensor:
    """Standard normal, the same for the same seed on any device, in at least float32."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype).to(like.device)


def check_noise(noise: Tensor, shape: tuple[int, ...]) -> None:
    """That noise has the latents' shape and a dtype that states can have."""
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


def for_batch(cond: Cond, batch: int) -> Cond:
    """A conditioning for as many samples as there are: one prompt serves them all."""
    tensors = {}
    for name, tensor in cond.items():
        if tensor.ndim and len(tensor) not in (1, batch):
            raise InputError(
                f"cond[{name!r}] is for a batch of {len(tensor)} and the noise for {batch}; "
                "give one prompt for all, or one for each"
            )
        wide = tensor.ndim and len(tensor) == 1 < batch
        tensors[name] = tensor.expand(batch, *tensor.shape[1:]) if wide else tensor
    return Cond(tensors)
