"""`DiffusionModel`: the parts of a diffusion model that a sampler needs."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence

from jaxtyping import Float
from torch import Tensor, nn

from .._types import Cond, Run, direct
from .denoisers import Denoiser
from .schedules import Schedule

Latents = Float[Tensor, "batch *shape"]


class DiffusionModel(nn.Module, ABC):
    """The parts of a diffusion model that a sampler needs: schedule, denoiser, encoder of prompts, decoder.

    Derive from it to sample from a model of your own with `FlowSampler`. For a pipeline of diffusers use
    `PipelineModel`, or `FlowSampler.from_pipeline`.

    Examples:
        >>> import adjointdpm as adp
        >>> model = adp.load_bundled("emoji", steps=2).model
        >>> isinstance(model, adp.DiffusionModel), model.latent_shape, model.image_shape
        (True, (8, 16, 16), (3, 64, 64))
    """

    schedule: Schedule
    """The noise schedule that the model was trained with."""

    denoiser: Denoiser
    """The network, guidance included."""

    latent_shape: tuple[int, ...]
    """The shape of one sample of noise, without the batch."""

    image_shape: tuple[int, ...]
    """(channels, height, width) of one image."""

    @abstractmethod
    def encode(self, prompts: Sequence[str], negative: str, guidance_scale: float) -> Cond:
        """Encode prompts.

        Args:
            prompts: one or more prompts.
            negative: the negative prompt of all of them.
            guidance_scale: w of classifier-free guidance.

        Returns:
            the conditioning, batch first; without negative tensors where guidance_scale <= 1.
        """

    @abstractmethod
    def decode(self, latents: Latents, run: Run = direct) -> Float[Tensor, "batch channels h w"]:
        """Decode latents.

        Args:
            latents: (batch, *latent_shape).
            run: executes the decoder's blocks, one by one.

        Returns:
            images (batch, channels, height, width), nominally in [0, 1], not clamped.
        """

    def tiled(self) -> Mapping[int, Callable[[Tensor, Run], Tensor]]:
        """Ways to decode in less memory, to nearly the same image.

        Returns:
            a function of latents and `run` for each side of a tile, in latents; empty by default.
        """
        return {}

    def check(self, noise: Latents, cond: Cond, wanted: bool) -> None:
        """Check the inputs of a sampling before it begins, for errors that decoding would raise at its end.

        Args:
            noise: (batch, *latent_shape).
            cond: the conditioning.
            wanted: whether noise or conditioning requires a gradient.
        """

    @abstractmethod
    def decoder_weights(self) -> list[Tensor]:
        """The weights of the decoder; empty if decoding has none."""

    def decoders(self) -> dict[str, nn.Module]:
        """The modules that hold the decoder's weights, by name."""
        weights = {id(weight) for weight in self.decoder_weights()}
        return {
            name: part
            for name, part in self.named_children()
            if part is not self.denoiser and any(id(weight) in weights for weight in part.parameters())
        }
