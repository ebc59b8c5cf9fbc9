"""`DiffusionModel`: what a sampler needs to know of a model."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence

from jaxtyping import Float
from torch import Tensor, nn

from .._types import Cond, Run, direct
from .denoisers import Denoiser
from .schedules import Schedule

Latents = Float[Tensor, "batch *shape"]


class DiffusionModel(nn.Module, ABC):
    """What a sampler needs to know of a model.

    schedule      the noise schedule the model was trained with
    denoiser      its network
    latent_shape  of one sample of noise, without the batch
    image_shape   (channels, height, width) of one image
    """

    schedule: Schedule
    denoiser: Denoiser
    latent_shape: tuple[int, ...]
    image_shape: tuple[int, ...]

    @abstractmethod
    def encode(self, prompts: Sequence[str], negative: str, guidance_scale: float) -> Cond:
        """The conditioning of prompts; without negative tensors where guidance_scale <= 1."""

    @abstractmethod
    def decode(self, latents: Latents, run: Run = direct) -> Float[Tensor, "batch channels h w"]:
        """Pictures in [0, 1], not clamped; `run` executes the decoder's blocks, one by one."""

    def tiled(self) -> Mapping[int, Callable[[Tensor, Run], Tensor]]:
        """Ways to decode in less memory, to nearly the same picture, by the side of a tile; none by default."""
        return {}

    def check(self, noise: Latents, cond: Cond, wanted: bool) -> None:
        """Called before a sampling; raises what would else be noticed at its end, at decoding.

        Args:
            wanted: whether a gradient of noise or conditioning is asked for.
        """

    @abstractmethod
    def decoder_weights(self) -> list[Tensor]:
        """The tensors that decoding depends on besides the latents."""

    def decoders(self) -> dict[str, nn.Module]:
        """The modules, by name, that hold the decoder's weights."""
        weights = {id(weight) for weight in self.decoder_weights()}
        return {
            name: part
            for name, part in self.named_children()
            if part is not self.denoiser and any(id(weight) in weights for weight in part.parameters())
        }
