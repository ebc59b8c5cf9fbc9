"""`Sampler`: the interface that tasks, analysis and commands use, and the checks of its inputs.

image    (batch, 3, height, width)            in [0, 1], not clamped
video    (batch, frames, 3, height, width)    likewise, `rate` frames a second
audio    (batch, channels, samples)           nominally in [-1, 1], `rate` samples a second
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .._types import Cond, InputError, Stats
from ..adjoints import Adjoint
from ..pipelines.call_signature import LENGTHS

Images = Float[Tensor, "batch channels height width"]
Videos = Float[Tensor, "batch frames channels height width"]
Waveforms = Float[Tensor, "batch channels samples"]
Medium = Literal["image", "video", "audio"]


Self = TypeVar("Self", bound="Sampler")


class Sampler(nn.Module, ABC):
    """A module whose `forward` is a whole sampling: noise and a conditioning in, images out, differentiable.

    What it makes are images, or videos or sound, as its `medium` says. As an `nn.Module` it can be wrapped by DDP and
    the like. Use `FlowSampler` for this library's own step loop, and `PipelineSampler` for a pipeline's own scheduler;
    derive from this class for any other generator.

    Examples:
        >>> import adjointdpm as adp
        >>> sampler = adp.load_bundled("emoji", steps=2)
        >>> isinstance(sampler, adp.Sampler)
        True
        >>> noise = sampler.noise(batch=1, seed=0).requires_grad_()
        >>> sampler(noise, sampler.encode("a cat")).mean().backward()
        >>> noise.grad.shape
        torch.Size([1, 8, 16, 16])
    """

    stats: Stats
    """What the newest call, and the backward pass through it, did and held."""

    image_shape: tuple[int, ...]
    """(channels, height, width) of one image, or of one frame of a video; 3 channels, or 1 for gray."""

    medium: Medium = "image"
    """What one sample is."""

    rate: float | None = None
    """Frames of a video, or samples of sound, in a second; None for images."""

    settings: ClassVar[tuple[str, ...]] = ()
    """The names that `replace` accepts: arguments of the constructor, kept as attributes of the same names."""

    # Most of these are of narrower types in the samplers that have them.
    steps: Any = None
    """Number of steps, an int, where there is such a number."""

    guidance_scale: Any = None
    """w of classifier-free guidance, a float, where there is guidance."""

    negative_prompt: str = ""
    """What `encode` takes for the negative prompt where none is given."""

    adjoint: Any = None
    """How the gradient is made, an `Adjoint`; None where it is plain autograd's."""

    solver: Any = None
    """The `Solver` of the steps; None where a pipeline's scheduler makes them."""

    pipe: Any = None
    """The stock pipeline behind this sampler; None where there is none."""

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of one sample: (3, height, width), (frames, 3, height, width) or (channels, samples)."""
        return self.image_shape

    @property
    def network(self) -> nn.Module | None:
        """The denoising network; None where it is not known."""
        return None

    @abstractmethod
    def encode(
        self, prompts: Sequence[str] | str, negative: str | None = None, graph: bool = False
    ) -> Cond:
        """Encode one or more prompts.

        Args:
            prompts: one or more prompts.
            negative: the negative prompt of all of them; the sampler's `negative_prompt` if None.
            graph: whether the tensors keep the graph to the text encoder, for the gradient of its weights. A graph
                serves one backward pass. Within `TokenRows` there always is one.

        Returns:
            the conditioning, batch first. Without a graph its tensors are leaves; call `requires_grad_()` for their
            gradients.

        Raises:
            InputError: a prompt would be ignored; or `graph=True`, and nothing requires a gradient.
        """

    def with_guidance(self, cond: Cond) -> Cond:
        """The conditioning with this sampler's guidance scale among its tensors, for the gradient of the scale.

        A conditioning from `encode` holds no scale: the sampler's `guidance_scale` counts. One that it holds comes
        first.

        Args:
            cond: the conditioning.

        Returns:
            a copy with the scale, 0-dimensional, under the name that the model gives it; `cond` itself where it holds
            no negative tensors, or a scale already.
        """
        return cond

    @abstractmethod
    def noise(self, batch: int = 1, seed: int = 0) -> Float[Tensor, "batch *shape"]:
        """Draw standard normal noise in the shape of the latents.

        Args:
            batch: number of images.
            seed: the seed.

        Returns:
            noise (batch, *shape), float32 or wider; the same for the same seed on any device.
        """

    @abstractmethod
    def forward(self, noise: Tensor, cond: Cond) -> Images | Videos | Waveforms:
        """Sample images, videos or sound.

        Args:
            noise: (batch, *shape), float32 or float64, standard normal; its dtype is that of all states.
            cond: from `encode`, for one prompt or for as many as the batch.

        Returns:
            images (batch, 3, height, width), nominally in [0, 1], not clamped; clamp them only to save them. Videos are
            (batch, frames, 3, height, width), and sound (batch, channels, samples), nominally in [-1, 1].

        Raises:
            InputError: shapes or dtypes do not fit, or the adjoint cannot give a gradient that is required.
            NonFiniteError: the denoiser returned NaN or infinity; the message names the step.
        """

    def invert(self, images: Images, cond: Cond, *, tolerance: float = 1e-3) -> Tensor:
        """Return the noise from which this sampler makes given images, where its steps can be run backwards.

        Args:
            images: (batch, *image_shape), in [0, 1].
            cond: from `encode`.
            tolerance: the largest accepted relative error of what the noise leads to.

        Returns:
            the noise.

        Raises:
            InputError: the sampler has no inverse.
        """
        raise InputError(
            f"{type(self).__name__} has no inversion of its own; use FlowSampler or PipelineSampler, or override invert"
        )

    def replace(
        self: Self,
        *,
        steps: int | None = None,
        guidance_scale: float | None = None,
        adjoint: Adjoint | None = None,
    ) -> Self:
        """Return a copy with other settings, which shares the weights.

        Args:
            steps: as in the constructor.
            guidance_scale: as in the constructor.
            adjoint: as in the constructor.

        Returns:
            the copy. Each kind of sampler takes its further settings, too.
        """
        return self._replaced(steps=steps, guidance_scale=guidance_scale, adjoint=adjoint)

    def _replaced(self: Self, **changes: Any) -> Self:
        own = {name: getattr(self, name) for name in self.settings}
        return type(self)(**own | {name: value for name, value in changes.items() if value is not None})


def listed(prompts: Sequence[str] | str) -> list[str]:
    """Prompts as a list.

    Args:
        prompts: one prompt, or a sequence of prompts.

    Returns:
        a list of at least one prompt.

    Raises:
        InputError: there is no prompt, or one is not a string.
    """
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    if not prompts:
        raise InputError("encode needs at least one prompt, but the list is empty")
    for each in prompts:
        if not isinstance(each, str):
            raise InputError(f"a prompt is a string, but one is {type(each).__name__}: {each!r}")
    return prompts


def normal(shape: tuple[int, ...], seed: int, like: Tensor) -> Tensor:
    """Draw standard normal numbers on the CPU and move them to a device.

    Args:
        shape: the shape of the result.
        seed: the seed.
        like: a tensor whose device the result takes, and whose dtype if it is wider than float32.

    Returns:
        the numbers, in float32 or wider; the same for the same seed on any device.
    """
    dtype = torch.promote_types(like.dtype, torch.float32)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype).to(like.device)


def with_scale(cond: Cond, name: str, scale: float) -> Cond:
    """Add a guidance scale to a conditioning with negative tensors that holds none.

    Args:
        cond: the conditioning.
        name: the name of the scale.
        scale: its value.

    Returns:
        the conditioning, with the scale in the dtype and on the device of the embeddings.
    """
    if name in cond or not any(each.startswith("negative_") for each in cond):
        return cond
    like = next((each for each in cond.values() if each.is_floating_point()), torch.zeros(()))
    return cond.replace(**{name: torch.tensor(float(scale), device=like.device, dtype=like.dtype)})


def check_cond(cond: Any, masks: frozenset[str] | None = None) -> None:
    """Raise unless a conditioning maps names to tensors.

    Args:
        cond: the conditioning.
        masks: the names of the tensors that may be integers; all may if None.

    Raises:
        InputError: it is not a mapping, one of its values is not a tensor, or one holds integers.
    """
    if not isinstance(cond, Mapping):
        raise InputError(
            f"the conditioning must be a Cond, as from sampler.encode(prompt), or Cond() for none, but is a "
            f"{type(cond).__name__}"
        )
    for name, each in cond.items():
        if not isinstance(each, Tensor):
            raise InputError(f"cond[{name!r}] must be a tensor, but is a {type(each).__name__}")
        if masks is not None and not each.is_floating_point() and name not in masks:
            raise InputError(
                f"cond[{name!r}] must be floating point, but is {each.dtype}; integers such as class labels go "
                "in under names that the denoiser declares in its attribute `masks`, and have no gradient"
            )


def check_noise(noise: Tensor, shape: tuple[int, ...]) -> None:
    """Raise unless noise has the shape of the latents, a dtype for states, and finite values.

    Args:
        noise: the noise.
        shape: the shape of one sample's latents.

    Raises:
        InputError: it is not a tensor, or its shape, dtype or values cannot be used.
    """
    if not isinstance(noise, Tensor):
        raise InputError(f"noise must be a tensor, but is a {type(noise).__name__}")
    if tuple(noise.shape[1:]) != shape or noise.ndim != len(shape) + 1 or len(noise) == 0:
        raise InputError(
            f"noise must be (batch, {', '.join(map(str, shape))}), but is {tuple(noise.shape)}; "
            "make it with sampler.noise(batch, seed)"
        )
    if noise.dtype not in (torch.float32, torch.float64):
        raise InputError(
            f"noise must be float32 or float64, since its dtype is that of the solver's states, but is {noise.dtype}; "
            "the network may have any dtype"
        )
    if not bool(torch.isfinite(noise).all()):
        raise InputError("the noise holds NaN or infinity; make it with sampler.noise(batch, seed)")


def for_batch(cond: Cond, batch: int) -> Cond:
    """Expand the conditioning of one prompt to a batch.

    Args:
        cond: the conditioning, of one sample or of the whole batch.
        batch: number of samples.

    Returns:
        the conditioning of the batch.

    Raises:
        InputError: it is for another batch, holds NaN or infinity, or has a mask that leaves no token of a sample.
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
