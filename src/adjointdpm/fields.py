"""A diffusers pipeline as a guided vector field: what it says at (x, t), how it reads and decodes.

Two denoisers say the same, to the last bit:

    PipelineDenoiser  runs the pipeline's own `__call__` for one step under a probe scheduler that asks
                      for the one time wanted and returns the network's output, so that the pipeline's
                      guidance, batching and scaling are its own code. Costs 1-3 ms a call.
    UNetDenoiser      calls the UNet directly; for the bundled model, where those milliseconds matter.
"""

import copy
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ._types import Cond, InputError, Run, Scalar, direct
from .denoisers import Denoiser, GuidedDenoiser, Prediction
from .schedules import Schedule, VPDiscrete

__all__ = ["Field", "PipelineDenoiser", "PipelineField", "UNetDenoiser", "outermost", "vp_schedule"]

Latents = Float[Tensor, "batch channels height width"]


class Field(nn.Module, ABC):
    """What a sampler needs to know of a model."""

    schedule: Schedule
    denoiser: Denoiser
    latent_shape: tuple[int, ...]
    image_shape: tuple[int, ...]

    @abstractmethod
    def encode(self, prompts: Sequence[str], negative: str, guidance_scale: float) -> Cond:
        """The conditioning of prompts; without negative tensors where guidance_scale <= 1."""

    @abstractmethod
    def decode(self, latents: Latents, run: Run = direct) -> Float[Tensor, "batch 3 h w"]:
        """Pictures in [0, 1], not clamped; `run` executes the decoder's blocks, one by one."""

    @abstractmethod
    def decoder_weights(self) -> list[Tensor]:
        """The tensors that decoding depends on besides the latents."""


class _Probe:
    """A scheduler that asks a pipeline for its model's output at one time.

    Pipelines inspect the signature of `set_timesteps`, hence the named arguments nobody reads.
    """

    order = 1
    init_noise_sigma = 1.0

    def __init__(self, config: Any) -> None:
        self.config = config
        self.timesteps = torch.zeros(1)
        self.time = torch.zeros(())

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        timesteps: Any = None,
        sigmas: Any = None,
        mu: float | None = None,
    ) -> None:
        self.timesteps = self.time.reshape(1).to(device)

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        return sample

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, **_: Any) -> tuple[Tensor]:
        return (model_output,)


class PipelineDenoiser(GuidedDenoiser):
    """The output of a pipeline's network through the pipeline's own call.

    Args:
        pipe: a pipeline that takes `latents`, `prompt_embeds` and `guidance_scale`; it is not changed.
        prediction: what its network's output stands for.
        split: whether guidance is made of two calls instead of one batch of both.
    """

    def __init__(self, pipe: Any, prediction: Prediction, split: bool = False) -> None:
        super().__init__()
        self.prediction, self.split = prediction, split
        self.network = pipe.unet
        self._probe = _Probe(pipe.scheduler.config)
        # A shallow copy shares every module; only its scheduler and progress bar are its own.
        self._pipe = copy.copy(pipe)
        self._pipe.__dict__["scheduler"] = self._probe
        self._pipe.set_progress_bar_config(disable=True)
        self._call = inspect.unwrap(type(pipe).__call__)  # without the decorator's no_grad

    def plain(self, x: Tensor, t: Scalar, prompt: Tensor) -> Tensor:
        return self._output(x, t, prompt_embeds=prompt, guidance_scale=1.0)

    def guided(self, x: Tensor, t: Scalar, prompt: Tensor, negative: Tensor, w: Tensor) -> Tensor:
        return self._output(x, t, prompt_embeds=prompt, negative_prompt_embeds=negative, guidance_scale=w)

    def _output(self, x: Tensor, t: Scalar, **arguments: Any) -> Tensor:
        dtype = self.network.dtype
        self._probe.time = _network_time(t, x)
        given = {k: v.to(dtype) if k.endswith("embeds") else v for k, v in arguments.items()}
        return self._call(
            self._pipe,
            latents=x.to(dtype),
            num_inference_steps=1,
            output_type="latent",
            return_dict=False,
            **given,
        )[0].to(x.dtype)


class UNetDenoiser(GuidedDenoiser):
    """The output of a conditional UNet, called directly.

    Args:
        unet: diffusers' `UNet2DConditionModel`.
        prediction: what its output stands for.
        split: whether guidance is made of two calls instead of one batch of both.
    """

    def __init__(self, unet: Any, prediction: Prediction, split: bool = False) -> None:
        super().__init__()
        self.prediction, self.split = prediction, split
        self.network: Any = unet

    def plain(self, x: Tensor, t: Scalar, prompt: Tensor) -> Tensor:
        dtype = self.network.dtype
        out = self.network(
            x.to(dtype), _network_time(t, x), encoder_hidden_states=prompt.to(dtype), return_dict=False
        )
        return out[0].to(x.dtype)

    def guided(self, x: Tensor, t: Scalar, prompt: Tensor, negative: Tensor, w: Tensor) -> Tensor:
        both = self.plain(torch.cat([x, x]), t, torch.cat([negative, prompt]))
        unguided, aimed = both.chunk(2)
        return unguided + w * (aimed - unguided)


def outermost(run: Run) -> Callable[..., Any]:
    """`run` for a decoder's blocks, but not for blocks within them.

    The switch is off again when a block is recomputed; it must then save what it saved the first time.
    """
    inside = False

    def each(block: nn.Module, *args: Any) -> Any:
        nonlocal inside
        if inside:
            return block(*args)
        inside = True
        try:
            return run(block, *args)
        finally:
            inside = False

    return each


def _network_time(t: Scalar, x: Tensor) -> Tensor:
    """The time as networks take it: never below float32, whatever the latents are."""
    return t.to(x.device, torch.promote_types(x.dtype, torch.float32))


class PipelineField(Field):
    """A Stable-Diffusion-like pipeline: UNet, VAE, text encoder, any variance-preserving scheduler.

    Args:
        pipe: a `StableDiffusionPipeline`; its modules are shared, nothing in it is changed.
        split_guidance: two network calls a step instead of one batch of both.
        direct: call the UNet itself instead of the pipeline's `__call__`.
        vocabulary: the words the text encoder knows, for a model of a closed vocabulary.
    Raises:
        InputError: it is another kind of pipeline, or its scheduler is not variance preserving.
    """

    def __init__(
        self,
        pipe: Any,
        split_guidance: bool = False,
        direct: bool = False,
        vocabulary: frozenset[str] | None = None,
    ) -> None:
        super().__init__()
        from diffusers import StableDiffusionPipeline  # seconds to import, and here already done

        if not isinstance(pipe, StableDiffusionPipeline):
            raise InputError(
                f"FlowSampler.from_pipeline takes a StableDiffusionPipeline, but was given a {type(pipe).__name__}"
            )
        self.schedule, prediction = vp_schedule(pipe.scheduler)
        if direct:
            self.denoiser: Denoiser = UNetDenoiser(pipe.unet, prediction, split_guidance)
        else:
            self.denoiser = PipelineDenoiser(pipe, prediction, split_guidance)
        self.vae, self.text_encoder = pipe.vae, pipe.text_encoder
        size = pipe.unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        self.latent_shape = (pipe.unet.config.in_channels, height, width)
        factor = 2 ** (len(pipe.vae.config.block_out_channels) - 1)
        self.image_shape = (pipe.vae.config.out_channels, factor * height, factor * width)
        self.vocabulary = vocabulary
        self._pipe: Any = pipe

    def encode(self, prompts: Sequence[str], negative: str, guidance_scale: float) -> Cond:
        self._check_words([*prompts, negative])
        device = next(self.denoiser.parameters()).device
        guided = guidance_scale > 1
        positive, unguided = self._pipe.encode_prompt(
            list(prompts), device, 1, guided, [negative] * len(prompts) if guided else None
        )
        if not guided:
            return Cond({"prompt_embeds": positive})
        scale = torch.tensor(guidance_scale, device=device, dtype=positive.dtype)
        return Cond(
            {"prompt_embeds": positive, "negative_prompt_embeds": unguided, "guidance_scale": scale}
        )

    def decode(self, latents: Latents, run: Run = direct) -> Float[Tensor, "batch 3 h w"]:
        # The VAE's own switch for checkpointing lets us say how a block is run. A user's is left on.
        switch = run is not direct and not self.vae.is_gradient_checkpointing
        if switch:
            self.vae.enable_gradient_checkpointing(outermost(run))
        try:
            scaled = latents / self.vae.config.scaling_factor
            image = self.vae.decode(scaled.to(self.vae.dtype), return_dict=False)[0]
        finally:
            if switch:
                self.vae.disable_gradient_checkpointing()
        return image.to(latents.dtype) / 2 + 0.5

    def decoder_weights(self) -> list[Tensor]:
        return list(self.vae.parameters())

    def _check_words(self, prompts: Sequence[str]) -> None:
        if self.vocabulary is None:
            return
        unknown = {word for text in prompts for word in text.lower().split() if word not in self.vocabulary}
        if unknown:
            raise InputError(
                f"this model does not know the words {', '.join(sorted(unknown))}; it knows "
                f"{len(self.vocabulary)} words, see adjointdpm.load(...).field.vocabulary"
            )


def vp_schedule(scheduler: Any) -> tuple[Schedule, Prediction]:
    """The continuous schedule, and what the network predicts, of a scheduler of diffusers.

    Raises:
        InputError: it has no alphas_cumprod (it is not variance preserving), or an unknown prediction.
    """
    alphas = getattr(scheduler, "alphas_cumprod", None)
    if alphas is None:
        raise InputError(
            f"{type(scheduler).__name__} has no alphas_cumprod, so it is not variance preserving"
        )
    kind = scheduler.config.get("prediction_type", "epsilon")
    try:
        prediction = Prediction(kind)
    except ValueError:
        known = ", ".join(each.value for each in Prediction)
        raise InputError(f"prediction_type is one of {known}, but the scheduler says {kind}") from None
    return VPDiscrete(alphas), prediction
