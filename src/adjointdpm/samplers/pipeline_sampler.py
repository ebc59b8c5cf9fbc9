"""Any text-to-image, -video or -audio pipeline of diffusers as a sampler: its own scheduler, pixels not clamped.

    image = pipeline(noise, cond; seed)     exact gradients of noise, cond, per-step noise and weights

The noise replaces the first draw of the pipeline itself. So the pipeline needs no `latents` argument, and this module
need not know how it packs latents. Every further draw follows from `seed` and is the same in each call.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .._types import AdjointDPMError, Cond, InputError, Stats, in_range
from ..adjoints import Adjoint, Checkpointed
from ..pipelines.call_signature import Arguments, arguments_of
from ..pipelines.checks import explained
from ..pipelines.differentiable import PipelineCall
from ..pipelines.gradient_proxy import denoisers, parts, plain_copy
from ..pipelines.image_to_image import image_to_image
from ..pipelines.media import decodes_frames_alone, made_shape, medium_of, of_frames, rate_of
from ..pipelines.prompt_encoding import encoded, read_prompts
from ..pipelines.run_until import StopAtFirstCall, run_until
from ..pipelines.torch_interception import Draws, Watch
from .base import Images, Sampler, Videos, Waveforms, check_noise, listed, normal, with_scale
from .pipeline_arguments import (
    STEP_NOISE,
    call_arguments,
    check_drawn,
    check_frames,
    check_names,
    check_start,
    checked_cond,
)
from .pipeline_inversion import inverted_by_pipeline

__all__ = ["PipelineSampler"]

_DIMENSIONS = {"image": 4, "video": 5, "audio": 3}


class PipelineSampler(Sampler):
    """Sampling by a stock pipeline's own `__call__` and scheduler, with a gradient by `adjoint`.

    Use it for pipelines and schedulers that `FlowSampler` does not support, such as schedulers with noise in their
    steps. Do not use it for pipelines that start from an image, since their first draw is not the noise; use
    `differentiable` there. The states have the dtype of the noise, whatever the dtype of the weights is.

    Besides the pipeline's own arguments a Cond may hold `step_noise` (batch, draws, *shape), the noise that is drawn
    after the first noise, in order, as a variable; see `step_noise()`.

    A pipeline that makes videos (Wan, LTX, AnimateDiff) or sound (Stable Audio) is used in the same way: `medium` says
    what it makes, `output_shape` of which shape. Their length is an argument of the pipeline, such as `num_frames` or
    `audio_end_in_s`.

    Args:
        pipe: the pipeline; its modules are shared and it is not changed.
        steps: num_inference_steps, at least 1.
        guidance_scale: w of classifier-free guidance; the pipeline's own default if None.
        negative_prompt: what `encode` guides away from where it is given no other.
        seed: the seed of the noise within steps (ancestral and SDE schedulers).
        adjoint: `Checkpointed()` by default, or `Backprop()`, `Truncated(last=)`, `DRTune(early_stop=0.0)` or
            `FlowBP(connector="sparse")`.
        arguments: further arguments of the pipeline's call, such as height, width and num_frames.
        frame_rate: frames of a video in a second; passed on where the call takes a `frame_rate`, and else the rate at
            which pages play the video. The call's own default if None, or 8 where it has none. Wan is made for 16.

    Raises:
        InputError: steps < 1; a frame rate that is not above 0, or where no video is made; an adjoint that needs steps
            of this library's own, such as `Continuous`; an argument that the pipeline's call does not take; or a
            pipeline that `differentiable` refuses.

    Examples:
        >>> import adjointdpm as adp
        >>> pipe = adp.load_bundled("emoji").model.pipe
        >>> sampler = adp.PipelineSampler(pipe, steps=2)
        >>> sampler.latent_shape, sampler.image_shape
        ((8, 16, 16), (3, 64, 64))
    """

    steps: int
    guidance_scale: float
    adjoint: Adjoint

    settings = (
        "pipe",
        "steps",
        "guidance_scale",
        "negative_prompt",
        "seed",
        "adjoint",
        "arguments",
        "frame_rate",
    )

    def __init__(
        self,
        pipe: Any,
        *,
        steps: int = 25,
        guidance_scale: float | None = None,
        negative_prompt: str = "",
        seed: int = 0,
        adjoint: Adjoint | None = None,
        arguments: Mapping[str, Any] | None = None,
        frame_rate: float | int | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(steps, int) or steps < 1:
            raise InputError(f"steps must be a whole number, at least 1, but is {steps}")
        self._takes = arguments_of(type(pipe))
        self.steps, self.seed = steps, seed
        self.guidance_scale = self._takes.default if guidance_scale is None else guidance_scale
        self.negative_prompt = negative_prompt
        self.adjoint = Checkpointed() if adjoint is None else adjoint
        self.arguments = dict(arguments or {})
        check_names(self._takes, type(pipe).__name__, self.arguments, scale=False)
        self.pipe, self.medium, self.frame_rate = pipe, medium_of(pipe), frame_rate
        if frame_rate is not None:
            in_range("frame_rate", frame_rate, 0, 1000, open_low=True)
            if self.medium != "video":
                raise InputError(
                    f"{type(pipe).__name__} makes no video, so it has no frame_rate; leave it out"
                )
        self.rate = rate_of(pipe, frame_rate)
        PipelineCall(pipe, self.adjoint)  # raises if the pipeline cannot be differentiated
        modules = {
            name.replace(".", "_"): part for name, part in parts(pipe) if isinstance(part, nn.Module)
        }
        self.modules_of_pipe = nn.ModuleDict(modules)
        self._example: Cond | None = None
        self._shape: tuple[int, ...] | None = None
        self._img2img: Any = None
        self._output_shape: tuple[int, ...] | None = None
        self.stats = Stats()

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """The shape of one sample of noise, as the pipeline itself draws it."""
        if self._shape is None:
            self._shape = self._drawn()
        return self._shape

    @property
    def image_shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """(3, height, width) of one image, or of one frame of a video.

        Raises:
            InputError: the pipeline makes sound.
        """
        if self.medium == "audio":
            raise InputError(
                f"{type(self.pipe).__name__} makes sound, (channels, samples), and no images; see its output_shape"
            )
        if self.medium == "video":
            return self.output_shape[1:]
        *_, height, width = self.latent_shape
        widths = getattr(
            getattr(getattr(self.pipe, "vae", None), "config", None), "block_out_channels", (0,)
        )
        factor = getattr(self.pipe, "vae_scale_factor", 2 ** (len(widths) - 1))
        size = [self.arguments.get("height", factor * height), self.arguments.get("width", factor * width)]
        return (3, *size)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of one sample: (3, height, width), (frames, 3, height, width) or (channels, samples).

        That of a video or of sound is found once, by decoding latents through which no network has run.
        """
        if self.medium == "image":
            return self.image_shape
        if self._output_shape is None:
            self._output_shape = tuple[int, ...](self._before_sampling(partial(made_shape, self.pipe)))
        return self._output_shape

    def encode(
        self, prompts: Sequence[str] | str, negative: str | None = None, graph: bool = False
    ) -> Cond:
        texts, w = listed(prompts), float(self.guidance_scale)
        avoided = self.negative_prompt if negative is None else negative
        return encoded(self.pipe, lambda: read_prompts(self.pipe, texts, avoided, w, self.arguments), graph)

    def with_guidance(self, cond: Cond) -> Cond:
        name = self._takes.guidance
        return cond if name is None else with_scale(cond, name, self.guidance_scale)

    def noise(self, batch: int = 1, seed: int = 0) -> Float[Tensor, "batch *shape"]:
        return normal((batch, *self.latent_shape), seed, self._weight)

    def step_noise(self, batch: int = 1, seed: int = 0) -> Float[Tensor, "batch steps *shape"]:
        """Draw standard normal noise for the steps, to be passed as cond.replace(step_noise=...).

        Args:
            batch: number of images.
            seed: the seed.

        Returns:
            noise (batch, steps, *shape).
        """
        return normal((batch, self.steps, *self.latent_shape), seed ^ 0x5EED, self._weight)

    def forward(
        self, noise: Tensor, cond: Cond, frames: Sequence[int] | None = None
    ) -> Images | Videos | Waveforms:
        """Sample images, videos or sound.

        Args:
            noise: (batch, *latent_shape), float32 or float64, standard normal; its dtype is that of all states.
            cond: from `encode`, for one prompt or for as many as the batch.
            frames: the numbers of the frames of a video to return, in this order; all of them if None. Where the
                decoder decodes each frame by itself (AnimateDiff), it decodes and differentiates these alone; a decoder
                that compresses time (Wan, LTX) decodes all of them.

        Returns:
            images (batch, 3, height, width) or videos (batch, frames, 3, height, width), nominally in [0, 1], not
            clamped; or sound (batch, channels, samples), nominally in [-1, 1].

        Raises:
            InputError: shapes or dtypes do not fit, frames that there are not, or the adjoint cannot give a gradient
                that is required.
            NonFiniteError: the denoiser returned NaN or infinity; the message names the step.
        """
        exchanged = None
        if frames is not None:
            if self.medium != "video":
                raise InputError(
                    f"{type(self.pipe).__name__} makes no video, so it has no frames to choose"
                )
            check_frames(frames, self.output_shape[0])
            exchanged = of_frames(frames) if decodes_frames_alone(self.pipe) else None
        made = self._made(self._sampled(noise, cond, exchanged=exchanged), noise.dtype)
        return made if frames is None or exchanged is not None else made[:, list(frames)]

    def _sampled(self, noise: Tensor, cond: Cond, output: str = "pt", exchanged: Any = None) -> Any:
        """What the pipeline returns for a noise, of one of its output types."""
        cond = self._checked_cond(cond, len(noise))
        check_noise(noise, self.latent_shape)
        steps = cond[STEP_NOISE].unbind(1) if STEP_NOISE in cond else ()
        draws = Draws([noise, *steps])
        arguments = {**self._arguments(self._takes, len(noise), cond), "output_type": output}
        named = {"noise": noise, **cond}
        out = self._run(self.pipe, arguments, named, draws, self._step_seed, exchanged)
        check_drawn(self.pipe, draws, len(steps), self.steps)
        return out

    def latents(self, noise: Tensor, cond: Cond) -> Tensor:
        """The latents at the end of the pipeline's steps, as it returns them for output_type="latent".

        Args:
            noise: as in `forward`.
            cond: as in `forward`.

        Returns:
            the latents, (batch, *shape); packed where the pipeline packs them.
        """
        return self._sampled(noise, cond, "latent")[0].to(noise.dtype)

    def invert(self, images: Images, cond: Cond, *, tolerance: float = 1e-3) -> Tensor:
        """Return the noise from which this pipeline makes given images, differentiable.

            latents(invert(images)) = encode_image(images)        to the tolerance

        The pipeline's own sampling is inverted as a whole, for any scheduler that adds no noise, as
        `FlowSampler.invert` does it for a multistep solver. `stats` has the calls, and the distance in `drift`.

        Args:
            images: (batch, *image_shape), in [0, 1].
            cond: as in `forward`.
            tolerance: the largest accepted distance of the latents, as a fraction of their norm, above 0.

        Returns:
            noise, (batch, *latent_shape).

        Raises:
            InputError: the scheduler adds noise in its steps; images of another size; or a pipeline that makes no
                images, packs its latents, or that `FlowSampler.from_pipeline` refuses.
            InversionError: it does not converge; the message has the residual, and what to change.

        Examples:
            >>> import torch
            >>> import adjointdpm as adp
            >>> sampler = adp.PipelineSampler(adp.load_bundled("emoji").model.pipe, steps=4, guidance_scale=1.0)
            >>> sampler.invert(torch.rand(1, 3, 64, 64), sampler.encode("a cat"), tolerance=0.2).shape
            torch.Size([1, 8, 16, 16])
        """
        noise, self.stats = inverted_by_pipeline(self, images, cond, tolerance)
        return noise

    def draws(self) -> int:
        """How often a sampling draws noise, found by a run of the pipeline without its networks."""
        drawn = Draws()

        def run(arguments: dict[str, Any]) -> None:
            with Watch(draws=drawn):
                made_shape(self.pipe, {**arguments, "output_type": "latent"})

        self._before_sampling(run)
        return len(drawn.shapes)

    def image_to_image(
        self, images: Images, cond: Cond, *, strength: float, seeds: Sequence[int]
    ) -> Images:
        """Noise images to a time and denoise them again, by the image-to-image pipeline of the same family.

            x_t = add_noise(encode(image), eps, t),     then the pipeline's own steps from t, and its decoding

        It is the call of diffusers' own pipeline, such as `StableDiffusionImg2ImgPipeline`, on the same parts, but for
        the last clamp; `Purified` makes a defence of it. All noise follows from the seeds: the draw of the encoder's
        distribution, eps, and that of the steps. Schedulers that draw without a generator (`DPMSolverSDEScheduler`)
        draw by place in the batch, from the first seed.

        Args:
            images: (batch, *image_shape), in [0, 1].
            cond: from `encode`, for one prompt or for as many as the batch.
            strength: above 0, at most 1; so large a share of the sampler's steps is taken.
            seeds: one for each image; images with the same seed get the same noise.

        Returns:
            images (batch, 3, height, width), nominally in [0, 1], not clamped, with a graph to the given ones.

        Raises:
            InputError: diffusers has no such pipeline of this family, images of another size or range, another number
                of seeds, or an adjoint without a gradient for the image.
            NonFiniteError: as in `forward`.

        References:
            Meng et al., 2021, arXiv 2108.01073 (SDEdit).

        Examples:
            >>> import torch
            >>> import adjointdpm as adp
            >>> sampler = adp.PipelineSampler(adp.load_bundled("emoji").model.pipe, steps=10, guidance_scale=1.0)
            >>> image = torch.rand(1, 3, 64, 64).requires_grad_()
            >>> made = sampler.image_to_image(image, sampler.encode(""), strength=0.2, seeds=[0])
            >>> made.mean().backward()
            >>> sampler.stats.nfe_backward
            2
        """
        self.check_image_to_image()
        check_start(images, tuple(self.image_shape), seeds, cond)
        cond, takes = self._checked_cond(cond, len(images)), arguments_of(type(self._img2img))
        arguments = self._arguments(takes, len(images), cond)
        for name in {"height", "width"} - {*takes.names}:
            arguments.pop(name, None)  # they are the image's own there
        arguments["generator"] = [torch.Generator().manual_seed(seed) for seed in seeds]
        arguments |= {"image": images, "strength": strength}
        seed = seeds[0] ^ 0x57E9
        out = self._run(self._img2img, arguments, {"image": images, **cond}, Draws(), seed)
        return self._made(out, images.dtype)

    def check_image_to_image(self) -> None:
        """Raise unless diffusers has an image-to-image pipeline of this family.

        Raises:
            InputError: it has none, or one that does not start from the noised image; or no images are made.
        """
        if self.medium != "image":
            raise InputError(
                f"image_to_image is of images, but {type(self.pipe).__name__} makes {self.medium}"
            )
        if self._img2img is None:
            self._img2img = image_to_image(self.pipe)

    def _run(
        self,
        pipe: Any,
        arguments: dict[str, Any],
        named: Mapping[str, Tensor],
        draws: Draws,
        seed: int,
        exchanged: Callable[[Any], Mapping[str, Any]] | None = None,
    ) -> Any:
        """What a pipeline's call returns, with a graph to those of the named tensors that require a gradient."""
        given = {k: t for k, t in named.items() if t.requires_grad} if torch.is_grad_enabled() else {}
        weights: list[Tensor] = list(self.parameters())
        wanted = torch.is_grad_enabled() and bool(given or any(w.requires_grad for w in weights))
        with torch.random.fork_rng(self._devices()):
            torch.manual_seed(seed)  # for schedulers that draw without a generator
            call = PipelineCall(pipe, self.adjoint, self._watch(draws), quiet=True, exchanged=exchanged)
            out = call.run((), arguments, given, weights, wanted)
        self.stats = call.stats
        return out

    def _made(self, out: Any, dtype: torch.dtype) -> Tensor:
        made = out[0]
        if not isinstance(made, Tensor) or made.ndim != _DIMENSIONS[self.medium]:
            got = tuple(made.shape) if isinstance(made, Tensor) else type(made).__name__
            raise InputError(
                f"{type(self.pipe).__name__} returned {got}, not {self.medium} as tensors; use differentiable(pipe)"
            )
        return made.to(dtype)

    def replace(
        self,
        *,
        pipe: Any = None,
        steps: int | None = None,
        guidance_scale: float | None = None,
        negative_prompt: str | None = None,
        seed: int | None = None,
        adjoint: Adjoint | None = None,
        arguments: Mapping[str, Any] | None = None,
        frame_rate: float | int | None = None,
    ) -> "PipelineSampler":
        """Return a copy with other settings, which shares the weights; None leaves a setting as it is.

        Args:
            pipe: as in the constructor.
            steps: as in the constructor.
            guidance_scale: as in the constructor.
            negative_prompt: as in the constructor.
            seed: as in the constructor.
            adjoint: as in the constructor.
            arguments: as in the constructor.
            frame_rate: as in the constructor.

        Returns:
            the copy.
        """
        made = self._replaced(
            pipe=pipe,
            steps=steps,
            guidance_scale=guidance_scale,
            negative_prompt=negative_prompt,
            seed=seed,
            adjoint=adjoint,
            arguments=arguments,
            frame_rate=frame_rate,
        )
        made._example = self._example
        if pipe is None and arguments is None:
            made._shape, made._output_shape = self._shape, self._output_shape
        return made

    @staticmethod
    def _watch(draws: Draws) -> Callable[[], Watch]:
        return lambda: Watch(clamps=False, draws=draws)

    @property
    def _step_seed(self) -> int:
        return self.seed ^ 0x57E9  # so that noise(seed=) with the same number is independent of it

    @property
    def _weight(self) -> Tensor:
        """A weight of the first denoiser, for its dtype and device."""
        return next(next(iter(denoisers(self.pipe).values())).parameters())

    def _devices(self) -> list[torch.device]:
        device = plain_copy(self.pipe)._execution_device
        return [device] if device.type == "cuda" else []

    def _arguments(self, takes: Arguments, batch: int, cond: Cond) -> dict[str, Any]:
        """The arguments to pass to a pipeline's call: those of ours that its signature has, and the conditioning."""
        generator = torch.Generator(plain_copy(self.pipe)._execution_device).manual_seed(self._step_seed)
        ours: dict[str, Any] = {"num_inference_steps": self.steps, "generator": generator}
        if not any(name.endswith("embeds") for name in cond):
            ours["batch_size"] = batch
        if takes.guidance:
            ours[takes.guidance] = float(self.guidance_scale)
        if self.frame_rate is not None:
            ours["frame_rate"] = self.frame_rate
        return call_arguments(takes, ours, self.arguments, cond)

    def _drawn(self) -> tuple[int, ...]:
        """The shape of the pipeline's first noise, found by running the pipeline up to its first denoiser call."""
        draws = Draws()

        def until_first_call(arguments: dict[str, Any]) -> None:
            with Watch(draws=draws):
                run_until(self.pipe, lambda _: {}, arguments, StopAtFirstCall())

        self._before_sampling(until_first_call)
        shapes = draws.shapes
        if len(shapes) != 1:
            raise InputError(
                f"{type(self.pipe).__name__} draws noise {len(shapes)} times before its first step, so it is unknown "
                "which one the image starts from; use differentiable(pipe)"
            )
        return shapes[0][1:]

    def _before_sampling(self, run: Callable[[dict[str, Any]], Any]) -> Any:
        """Run something with the call's arguments for one prompt, and translate what the pipeline refuses."""
        if self._example is None:
            self._example = self.encode("") if self._takes.encoded else Cond()
        with torch.random.fork_rng(self._devices()):
            arguments = self._arguments(self._takes, 1, self._example.map(Tensor.detach))
            try:
                return run(arguments)
            except (RuntimeError, ValueError, TypeError) as error:
                tensors = {name: each for name, each in arguments.items() if isinstance(each, Tensor)}
                reason = explained(error, self.pipe, denoisers(self.pipe), tensors)
                if reason is None or isinstance(error, AdjointDPMError):
                    raise
                raise reason from error

    def _checked_cond(self, cond: Cond, batch: int) -> Cond:
        cond = checked_cond(self._takes, type(self.pipe).__name__, cond, batch)
        if self._example is None:
            self._example = cond.map(lambda tensor: tensor[:1] if tensor.ndim else tensor)
        return cond
