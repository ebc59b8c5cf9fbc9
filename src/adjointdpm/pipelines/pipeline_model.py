"""A diffusers pipeline as a `DiffusionModel`: its denoiser, its encoding of prompts, its decoding.

Two denoisers return the same output, to the last bit:

    PipelineDenoiser  runs the pipeline's own `__call__` (see `step_probe`), so that guidance, batching, packing and
                      scaling are the pipeline's code. This costs 1-3 ms a call.
    UNetDenoiser      calls the UNet directly; for the bundled model, where those milliseconds matter.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .._types import Cond, InputError, Run, Scalar, direct
from ..flow.denoisers import Denoiser, Prediction, SplitGuidance, network_time
from ..flow.grids import Grid, uniform
from ..flow.model import DiffusionModel, Latents
from ..flow.schedules import RectifiedFlow, Schedule
from .call_signature import guides
from .checks import refuse_placeholders, refuse_undecodable, warn_of_weights
from .decoding import decoded, encoded_image, without_overflow
from .media import medium_of
from .parameterization import Parameterization, parameterization_of
from .prompt_encoding import as_given, read_prompts
from .step_probe import ProbedPipeline

__all__ = ["PipelineDenoiser", "PipelineModel", "UNetDenoiser"]


class PipelineDenoiser(Denoiser):
    """The output of a pipeline's network through the pipeline's own call.

    The tensors of the conditioning have the names of the call's arguments. Masks are integers. Where a pipeline takes a
    list with one tensor a sample, the conditioning has one padded tensor, and `<name>_lengths` holds the numbers of
    valid rows.

    Args:
        call: the pipeline, whose call can be stopped at a step.
        network: the module that it calls at each step.
        parameterization: the schedule and the inputs and outputs of the network.
    """

    def __init__(self, call: ProbedPipeline, network: Any, parameterization: Parameterization) -> None:
        super().__init__()
        self.prediction = parameterization.prediction
        self.guidance, self.splittable = str(call.takes.guidance), call.takes.linear_guidance
        self.network: Any = network
        self.masks = call.takes.masks | call.takes.lengths
        self._call, self._parameterization = call, parameterization

    def forward(self, x: Tensor, t: Scalar, cond: Cond) -> Tensor:
        dtype = self.network.dtype  # this searches the weights, so it is read once
        sample = self._parameterization.precondition(x, t).to(dtype)
        arguments = self._arguments(cond, dtype)
        time = network_time(self._parameterization.time_input(t), x)
        out = self._call.output(sample, time, arguments).to(x.dtype)
        # A learned variance is in further channels, which the scheduler would split off.
        return self._parameterization.postcondition(
            out if out.shape == x.shape else out[:, : x.shape[1]], x, t
        )

    def _arguments(self, cond: Cond, dtype: torch.dtype) -> dict[str, Any]:
        """The conditioning as the pipeline's arguments, in the network's dtype."""
        takes = self._call.takes
        known = {*takes.conditioning, *takes.lengths, takes.guidance}
        for name in cond:
            if name not in known and (name not in takes.names or cond[name].ndim):
                raise InputError(
                    f"this pipeline takes no cond[{name!r}]; it takes "
                    f"{', '.join(name for name in (*takes.conditioning, takes.guidance) if name) or 'none'}"
                )
        out = as_given(takes, cond, dtype)
        if not any(name.startswith("negative_") for name in cond):
            return {**out, takes.guidance: 0.0} if takes.guidance else out
        scale = cond.get(self.guidance)
        if scale is not None and scale.ndim:
            raise InputError(
                f"cond[{takes.guidance!r}] must be one number for the whole batch, a 0-dimensional tensor, but has "
                f"shape {tuple(scale.shape)}"
            )
        if scale is None or not guides(self._call.pipe, scale.item()):
            raise InputError(
                f"the conditioning holds negative embeddings, which the pipeline would ignore: it needs "
                f"{takes.guidance} > 1; leave the negative tensors out, or use split_guidance=True"
            )
        return out


class UNetDenoiser(Denoiser):
    """The output of a conditional UNet that is called directly.

    Args:
        unet: diffusers' `UNet2DConditionModel`.
        prediction: the quantity that its output is.
    """

    splittable = True

    def __init__(self, unet: Any, prediction: Prediction) -> None:
        super().__init__()
        self.prediction = prediction
        self.network: Any = unet

    def forward(self, x: Tensor, t: Scalar, cond: Cond) -> Tensor:
        dtype = next(self.network.parameters()).dtype  # `network.dtype` would search the weights
        prompt, sample = cond["prompt_embeds"], x
        guided = "negative_prompt_embeds" in cond
        if guided:
            prompt, sample = torch.cat([cond["negative_prompt_embeds"], prompt]), torch.cat([x, x])
        (out,) = self.network(
            sample.to(dtype), network_time(t, x), encoder_hidden_states=prompt.to(dtype), return_dict=False
        )
        out = out.to(x.dtype)
        if not guided:
            return out
        unguided, aimed = out.chunk(2)
        return unguided + cond["guidance_scale"] * (aimed - unguided)


class PipelineModel(DiffusionModel):
    """The model of any pipeline that makes an image from latents and a prompt, or from noise alone.

    `FlowSampler.from_pipeline(pipe)` makes one for you; make one yourself to share it between samplers. A pipeline that
    needs other inputs, such as an image, has no such model; use `differentiable(pipe)` for it.

    Args:
        pipe: the pipeline; its modules are shared, and nothing in it is changed.
        split_guidance: whether guidance makes two network calls a step instead of one batch of both halves.
        call_unet_directly: whether the UNet is called directly, instead of the pipeline's `__call__` (Stable
            Diffusion only).
        vocabulary: the words that the text encoder was trained on, for a model with a closed vocabulary.
        height: of the image, in pixels; the pipeline's own if None.
        width: of the image, in pixels; the pipeline's own if None.

    Raises:
        InputError: the pipeline makes videos or sound, or needs other inputs, or the noise schedule of its scheduler is
            unknown; or `split_guidance` for a pipeline whose guidance is more than F_neg + w (F_pos - F_neg).

    Examples:
        >>> import adjointdpm as adp
        >>> pipe = adp.load_bundled("emoji").model.pipe
        >>> model = adp.PipelineModel(pipe)
        >>> adp.FlowSampler(model, steps=2).noise(1).shape
        torch.Size([1, 8, 16, 16])
    """

    vae: Any

    def __init__(
        self,
        pipe: Any,
        split_guidance: bool = False,
        call_unet_directly: bool = False,
        vocabulary: frozenset[str] | None = None,
        height: int | None = None,
        width: int | None = None,
    ) -> None:
        super().__init__()
        if (medium := medium_of(pipe)) != "image":
            raise InputError(
                f"{type(pipe).__name__} makes {medium}, which FlowSampler's own steps do not; use "
                "PipelineSampler(pipe), or --solver pipeline"
            )
        refuse_undecodable(pipe)
        self.pipe = pipe
        self._call = ProbedPipeline(pipe, height, width)
        parameterization = parameterization_of(pipe.scheduler)
        self.schedule = parameterization.schedule
        parts = {k: v for k, v in pipe.components.items() if isinstance(v, nn.Module)}
        network = parts.pop(network_name(parts, type(pipe).__name__))
        if "vae" in parts:
            parts["vae"] = without_overflow(parts["vae"])
        if call_unet_directly:
            denoiser: Denoiser = UNetDenoiser(network, parameterization.prediction)
        else:
            denoiser = PipelineDenoiser(self._call, network, parameterization)
        if split_guidance and not denoiser.splittable:
            raise InputError(
                "guidance of this pipeline cannot be split: it makes two calls already, or rescales "
                "what it guides; leave split_guidance off"
            )
        self.denoiser = SplitGuidance(denoiser) if split_guidance else denoiser
        for name, part in parts.items():
            self.add_module(name, part)
        self.vocabulary = vocabulary
        refuse_placeholders({"network": network, **parts})
        like = next(network.parameters())
        if "vae" not in parts:
            sample = pipe.unet.config
            size = (sample.sample_size,) * 2 if isinstance(sample.sample_size, int) else sample.sample_size
            self.latent_shape = self.image_shape = (sample.in_channels, *size)
        else:
            self.latent_shape, *size = self._call.sizes(like)
            self.image_shape = (3, *size)
        self.guidance_scale = self._call.takes.default
        self._parameterization = parameterization
        self.grid: Grid = self.visited if isinstance(self.schedule, RectifiedFlow) else uniform

    def visited(self, schedule: Schedule, steps: int) -> Tensor:
        """The times that the pipeline's own scheduler visits, shifted for its resolution, down to clean data.

        Args:
            schedule: the model's, whose clean end follows the scheduler's last time.
            steps: the number of steps that the scheduler is set to.

        Returns:
            the times, decreasing, in float64.
        """
        times = self._parameterization.schedule_time(
            self._call.times(steps, next(self.denoiser.parameters()))
        )
        times = times.unique().flip(0)  # schedulers of two calls a step visit them twice
        end = times.new_tensor([schedule.end])
        return times if float(times[-1]) <= schedule.end else torch.cat([times, end])

    def encode(self, prompts: Sequence[str], negative: str, guidance_scale: float) -> Cond:
        self._check_words([*prompts, negative])
        if not self._call.takes.encoded and not any([*prompts, negative]):
            return Cond()
        return read_prompts(self._call.pipe, prompts, negative, guidance_scale, self._call.fixed)

    def decode(self, latents: Latents, run: Run = direct) -> Float[Tensor, "batch channels h w"]:
        return decoded(self._call, getattr(self, "vae", None), latents, run)

    def encode_image(self, images: Float[Tensor, "batch channels h w"]) -> Latents:
        return encoded_image(getattr(self, "vae", None), images, self.latent_shape)

    def check(self, noise: Latents, cond: Cond, wanted: bool) -> None:
        if wanted:
            parts = self.pipe.components.items()
            warn_of_weights(self.pipe, {name: part for name, part in parts if isinstance(part, nn.Module)})
        self._call.check_decoding(noise, getattr(self, "vae", None), as_given(self._call.takes, cond))

    def check_guidance(self, cond: Cond, guidance_scale: float) -> None:
        takes = self._call.takes
        names = [each for each in takes.conditioning if each.startswith("negative_")]
        lacking = names and not any(each in cond for each in names)
        if (
            lacking
            and any(each in cond for each in takes.conditioning)
            and guides(self.pipe, guidance_scale)
        ):
            raise InputError(
                f"the conditioning holds no {names[0]}, and guidance_scale = {guidance_scale:g} needs it; encode the "
                "prompts by a sampler with this guidance_scale, or sample without guidance: "
                "sampler.replace(guidance_scale=1.0)"
            )

    def decoder_weights(self) -> list[Tensor]:
        return list(self.vae.parameters()) if hasattr(self, "vae") else []

    def _check_words(self, prompts: Sequence[str]) -> None:
        if self.vocabulary is None:
            return
        unknown = {word for text in prompts for word in text.lower().split() if word not in self.vocabulary}
        if unknown:
            raise InputError(
                f"this model was not trained on the words {', '.join(sorted(unknown))}; its vocabulary has "
                f"{len(self.vocabulary)} words, see adjointdpm.load_bundled(...).model.vocabulary"
            )


def network_name(parts: dict[str, nn.Module], kind: str) -> str:
    """Find the denoising network among a pipeline's modules: the single unet or transformer.

    Args:
        parts: the modules, by name.
        kind: the name of the pipeline's class, for the message.

    Returns:
        the name of the network.

    Raises:
        InputError: there is no such module, or more than one.
    """
    names = [name for name in parts if name.startswith(("unet", "transformer"))]
    if len(names) != 1:
        raise InputError(
            f"FlowSampler needs a pipeline with one denoising network, a unet or a transformer, but "
            f"{kind} has {', '.join(names) or 'none'}"
        )
    return names[0]
