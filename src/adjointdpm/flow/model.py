"""`DiffusionModel`: the parts of a diffusion model that a sampler needs."""

import copy
from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from .._types import Cond, InputError, Run, direct
from .denoisers import Denoiser, Prediction
from .schedules import Schedule

__all__ = ["DiffusionModel", "Latents", "check_model"]

Latents = Float[Tensor, "batch *shape"]


class DiffusionModel(nn.Module):
    """A noise schedule, a denoiser, and how prompts and latents are read: what a sampler needs to know of a model.

    Subclass it for a network of your own, set the four attributes in `__init__`, and override `encode` where the
    network takes prompts, and `decode` and `encode_image` where it works in a latent space. As it stands, a model takes
    no prompts, and its latents are pixels in [-1, 1].

    Attributes:
        schedule: the noise schedule that the network was trained with.
        denoiser: the network, as a `Denoiser`.
        latent_shape: of one sample of noise, without the batch.
        image_shape: (channels, height, width) of one image.

    Examples:
        >>> import adjointdpm as adp, torch
        >>> class Pixels(adp.DiffusionModel):
        ...     def __init__(self, network):
        ...         super().__init__()
        ...         self.schedule = adp.VPLinear()
        ...         self.denoiser = adp.NetworkDenoiser(network, adp.Prediction.EPS)
        ...         self.latent_shape = self.image_shape = (3, 8, 8)
        >>> class Network(torch.nn.Conv2d):
        ...     def forward(self, x, t):
        ...         return super().forward(x)
        >>> sampler = adp.FlowSampler(Pixels(Network(3, 3, 1)), steps=4)
        >>> sampler(sampler.noise(2), sampler.encode(["", ""])).shape
        torch.Size([2, 3, 8, 8])
    """

    schedule: Schedule
    """The noise schedule that the model was trained with."""

    denoiser: Denoiser
    """The network, guidance included."""

    latent_shape: tuple[int, ...]
    """The shape of one sample of noise, without the batch."""

    image_shape: tuple[int, ...]
    """(channels, height, width) of one image."""

    pipe: Any = None
    """The stock pipeline that the model was made of; None for a network of one's own."""

    vocabulary: frozenset[str] | None = None
    """The words that the text encoder knows, for a model of a closed vocabulary."""

    def encode(self, prompts: Sequence[str], negative: str, guidance_scale: float) -> Cond:
        """Return the conditioning of prompts, without negative tensors where guidance_scale <= 1.

        Args:
            prompts: at least one.
            negative: the negative prompt of all of them.
            guidance_scale: w; where it is above 1, the conditioning holds tensors whose names begin with `negative_`.

        Returns:
            Named tensors, each with as many rows as there are prompts.

        Raises:
            InputError: the model takes no prompts, and was given some.
        """
        if any([*prompts, negative]):
            raise InputError(
                f"{type(self).__name__} takes no prompts, but got {' '.join([*prompts, negative]).strip()[:40]!r}; "
                "override encode, or pass empty ones"
            )
        return Cond()

    def decode(self, latents: Latents, run: Run = direct) -> Float[Tensor, "batch channels h w"]:
        """Return images in [0, 1], not clamped.

        Args:
            latents: (batch, *latent_shape), at the clean end of the sampling.
            run: executes the decoder's blocks one by one, run(block, *tensors), so that they can be recomputed.
        """
        return latents / 2 + 0.5

    def encode_image(self, images: Float[Tensor, "batch channels h w"]) -> Latents:
        """Return the latents of images, differentiable: what `decode` takes back to nearly the same images.

        Args:
            images: (batch, *image_shape), in [0, 1].

        Raises:
            InputError: the model has a `decode` of its own and no `encode_image`.
        """
        if type(self).decode is not DiffusionModel.decode:
            raise InputError(
                f"{type(self).__name__} has its own decode, so it is not known how an image becomes its latents; "
                "override encode_image(images)"
            )
        return 2 * images - 1

    def check(self, noise: Latents, cond: Cond, wanted: bool) -> None:
        """Raise, before a sampling, what would else be noticed at its end, at decoding.

        Args:
            noise: what the sampling begins with.
            cond: its conditioning.
            wanted: whether noise or conditioning requires a gradient.
        """

    def check_guidance(self, cond: Cond, guidance_scale: float) -> None:
        """Raise, before a sampling, if its guidance would be left out for want of negative tensors.

        Args:
            cond: the conditioning.
            guidance_scale: w of the sampler.
        """

    def with_denoiser(self, denoiser: Denoiser) -> "DiffusionModel":
        """Return a copy with another denoiser, which shares everything else.

        Args:
            denoiser: the denoiser, as a rule a `WrappedDenoiser` of this model's.

        Returns:
            the copy; this model keeps its own.
        """
        other = copy.copy(self)
        other._modules = dict(self._modules)  # copy.copy shares the dictionary
        other.denoiser = denoiser
        return other

    def decoder_weights(self) -> list[Tensor]:
        """Return the tensors that decoding may depend on besides the latents: those outside the denoiser."""
        inside = {id(weight) for weight in self.denoiser.parameters()}
        return [weight for weight in self.parameters() if id(weight) not in inside]

    def decoders(self) -> dict[str, nn.Module]:
        """Return the modules, by name, that hold the decoder's weights."""
        weights = {id(weight) for weight in self.decoder_weights()}
        return {
            name: part
            for name, part in self.named_children()
            if part is not self.denoiser and any(id(weight) in weights for weight in part.parameters())
        }


def check_model(model: Any) -> None:
    """Raise unless a model has what a sampler needs of it.

    Args:
        model: the model.

    Raises:
        InputError: it is no `DiffusionModel`, or one of its attributes is missing or of another kind.
    """
    if not isinstance(model, DiffusionModel):
        raise InputError(
            "FlowSampler needs a DiffusionModel, or a pipeline by FlowSampler.from_pipeline(pipe), "
            f"but was given a {type(model).__name__}"
        )
    kinds = {"schedule": Schedule, "denoiser": Denoiser, "latent_shape": tuple, "image_shape": tuple}
    for name, kind in kinds.items():
        found = getattr(model, name, None)
        if not isinstance(found, kind):
            raise InputError(
                f"{type(model).__name__}.{name} must be a {kind.__name__}, but is {type(found).__name__}; a network of "
                "your own is wrapped in a Denoiser (adjointdpm.Denoiser): forward(x, t, cond), with its "
                "output's meaning in `prediction`"
            )
    if not isinstance(getattr(model.denoiser, "prediction", None), Prediction):
        raise InputError(
            f"{type(model.denoiser).__name__}.prediction must say what its output stands for: one of "
            f"{', '.join(f'Prediction.{each.name}' for each in Prediction)}"
        )
