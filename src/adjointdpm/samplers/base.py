"""`Sampler`: the contract that tasks, analysis and commands rely on, and the checks of its inputs."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .._types import Cond, InputError, Stats
from ..adjoints import Adjoint
from ..pipelines.call_signature import LENGTHS

Images = Float[Tensor, "batch channels height width"]


Self = TypeVar("Self", bound="Sampler")


class Sampler(nn.Module, ABC):
    """A module whose `forward` is a whole sampling, so that DDP and the like wrap it as any module."""

    stats: Stats
    """Of the newest call."""

    image_shape: tuple[int, ...]
    """(channels, height, width) of one image; 3 channels, or 1 for grey."""

    settings: ClassVar[tuple[str, ...]] = ()
    """What `replace` can exchange: arguments of the constructor, kept as attributes of the same names."""

    # These four are of narrower types in the samplers that have them.
    steps: Any = None
    """Number of steps, an int, where there is such a number."""

    guidance_scale: Any = None
    """w of classifier-free guidance, a float, where there is guidance."""

    adjoint: Any = None
    """How the gradient is made, an `Adjoint`; None where it is plain autograd's."""

    solver: Any = None
    """The `Solver` of the steps; None where a pipeline's scheduler makes them."""

    pipe: Any = None
    """The stock pipeline behind this sampler; None where there is none."""

    @property
    def network(self) -> nn.Module | None:
        """The denoising network; None where it is not known."""
        return None

    @abstractmethod
    def encode(self, prompts: Sequence[str] | str, negative: str = "", graph: bool = False) -> Cond:
        """The conditioning of one or more prompts, as leaves of which a gradient can be required.

        Args:
            prompts: one or more.
            negative: the negative prompt of all of them.
            graph: whether the tensors hang on what encoded them, for the gradient of a text encoder's weights. A
                graph serves one backward pass. Within `TokenRows` there is one without being asked for.
        Raises:
            InputError: a prompt would be ignored; a graph is asked for, and nothing requires a gradient.
        """

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

    def replace(
        self: Self,
        *,
        steps: int | None = None,
        guidance_scale: float | None = None,
        adjoint: Adjoint | None = None,
    ) -> Self:
        """Return a copy with other settings, which shares the weights.

        Args:
            steps, guidance_scale, adjoint: as in the constructor; None leaves a setting as it is. Each kind of sampler
                takes its further settings, too.
        """
        return self._replaced(steps=steps, guidance_scale=guidance_scale, adjoint=adjoint)

    def _replaced(self: Self, **changes: Any) -> Self:
        own = {name: getattr(self, name) for name in self.settings}
        return type(self)(**own | {name: value for name, value in changes.items() if value is not None})


def listed(prompts: Sequence[str] | str) -> list[str]:
    """Prompts as a list of at least one."""
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    if not prompts:
        raise InputError("encode needs at least one prompt, but the list is empty")
    for each in prompts:
        if not isinstance(each, str):
            raise InputError(f"a prompt is a string, but one is {type(each).__name__}: {each!r}")
    return prompts


def normal(shape: tuple[int, ...], seed: int, like: Tensor) -> Tensor:
    """Standard normal, the same for the same seed on any device, in at least float32."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype).to(like.device)


def check_cond(cond: Any) -> None:
    """That a conditioning is tensors by name."""
    if not isinstance(cond, Mapping):
        raise InputError(
            f"the conditioning must be a Cond, as from sampler.encode(prompt), or Cond() for none, but is a "
            f"{type(cond).__name__}"
        )
    for name, each in cond.items():
        if not isinstance(each, Tensor):
            raise InputError(f"cond[{name!r}] must be a tensor, but is a {type(each).__name__}")


def check_noise(noise: Tensor, shape: tuple[int, ...]) -> None:
    """That noise has the latents' shape and a dtype that states can have, and holds numbers."""
    if not isinstance(noise, Tensor):
        raise InputError(f"noise must be a tensor, but is a {type(noise).__name__}")
    if tuple(noise.shape[1:]) != shape or noise.ndim != len(shape) + 1 or len(noise) == 0:
        raise InputError(
            f"noise must be (batch, {', '.join(map(str, shape))}), but is {tuple(noise.shape)}; "
            "make it with sampler.noise(batch, seed)"
        )
    if noise.dtype not in (torch.float32, torch.float64):
        raise InputError(
            f"noise carries the solver's state and must be float32 or float64, but is {noise.dtype}; "
            "the network may have any dtype"
        )
    if not bool(torch.isfinite(noise).all()):
        raise InputError("the noise holds NaN or infinity; make it with sampler.noise(batch, seed)")


def for_batch(cond: Cond, batch: int) -> Cond:
    """A conditioning for as many samples as there are: one prompt serves them all.

    Raises:
        InputError: it is for another batch, holds NaN or infinity, or a mask that leaves nothing of a sample.
    """
    tensors = {}
    for name, tensor in cond.items():
        if tensor.ndim and len(tensor) not in (1, batch):
            raise InputError(
                f"cond[{name!r}] is for a batch of {len(tensor)} and the noise for {batch}; "
                "give one prompt for all, or one for each"
            )
        if not bool(torch.isfinite(tensor).all()):
            raise InputError(f"cond[{name!r}] holds NaN or infinity")
        empty = tensor <= 0 if name.endswith(LENGTHS) else ~tensor.bool().any(-1)
        if ("mask" in name or name.endswith(LENGTHS)) and tensor.ndim and bool(empty.any()):
            raise InputError(
                f"cond[{name!r}] leaves no token of at least one sample, so its embeddings have no influence and no "
                "gradient"
            )
        wide = tensor.ndim and len(tensor) == 1 < batch
        tensors[name] = tensor.expand(batch, *tensor.shape[1:]) if wide else tensor
    return Cond(tensors)
