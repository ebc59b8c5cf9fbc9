"""Any text-to-image pipeline of diffusers as a sampler: its own scheduler, images not clamped.

    image = pipeline(noise, cond; seed)     exact gradients of noise, cond, per-step noise and weights

The noise replaces the first draw of the pipeline itself. So the pipeline needs no `latents` argument, and this module
need not know how it packs latents. Every further draw follows from `seed` and is the same in each call.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .._types import AdjointDPMError, Cond, InputError, Stats
from ..adjoints import Adjoint, Checkpointed
from ..pipelines.call_signature import Arguments, arguments_of
from ..pipelines.checks import explained, followed
from ..pipelines.differentiable import PipelineCall
from ..pipelines.gradient_proxy import denoisers, parts
from ..pipelines.image_to_image import image_to_image
from ..pipelines.prompt_encoding import as_given, encoded, read_prompts
from ..pipelines.run_until import StopAtFirstCall, run_until
from ..pipelines.torch_interception import Draws, Watch
from .base import Images, Sampler, check_cond, check_noise, for_batch, listed, normal, with_scale

__all__ = ["PipelineSampler"]

_STEP_NOISE = "step_noise"
_OURS = {  # the pipeline's arguments that the sampler sets, and the setting that each follows from
    "num_inference_steps": "steps=",
    "latents": "noise, the sampler's first argument",
    "output_type": 'nothing, it is "pt"',
    "return_dict": "nothing, it is False",
    "generator": "seed=",
    "num_images_per_prompt": "a noise for each image",
}


class PipelineSampler(Sampler):
    """Sampling by a stock pipeline's own `__call__` and scheduler, with a gradient by `adjoint`.

    Use it for pipelines and schedulers that `FlowSampler` does not support, such as schedulers with noise in their
    steps. Do not use it for pipelines that start from an image, since their first draw is not the noise; use
    `differentiable` there. The states have the dtype of the noise, whatever the dtype of the weights is.

    Besides the pipeline's own arguments a Cond may hold `step_noise` (batch, draws, *shape), the noise that is drawn
    after the first noise, in order, as a variable; see `step_noise()`.

    Args:
        pipe: the pipeline; its modules are shared and it is not changed.
        steps: num_inference_steps, at least 1.
        guidance_scale: w of classifier-free guidance; the pipeline's own default if None.
        negative_prompt: what `encode` guides away from where it is given no other.
        seed: the seed of the noise within steps (ancestral and SDE schedulers).
        adjoint: `Checkpointed()` by default, or `Backprop()`, `Truncated(last=)`, `DRTune(early_stop=0.0)` or
            `FlowBP(connector="sparse")`.
        arguments: further arguments of the pipeline's call, such as height and width.

    Raises:
        InputError: steps < 1; an adjoint that needs steps of this library's own, such as `Continuous`; an argument that
            the pipeline's call does not take; or a pipeline that `differentiable` refuses.

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

    settings = ("pipe", "steps", "guidance_scale", "negative_prompt", "seed", "adjoint", "arguments")

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
        self._refuse_unknown(self.arguments, type(pipe).__name__)
        self._refuse_ours(self.arguments)
        self.pipe = pipe
        PipelineCall(pipe, self.adjoint)  # raises if the pipeline cannot be differentiated
        modules = {
            name.replace(".", "_"): part for name, part in parts(pipe) if isinstance(part, nn.Module)
        }
        self.modules_of_pipe = nn.ModuleDict(modules)
        self._example: Cond | None = None
        self._shape: tuple[int, ...] | None = None
        self._img2img: Any = None
        self.stats = Stats()

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """The shape of one sample of noise, as the pipeline itself draws it."""
        if self._shape is None:
            self._shape = self._drawn()
        return self._shape

    @property
    def image_shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """(3, height, width) of one image."""
        *_, height, width = self.latent_shape
        widths = getattr(
            getattr(getattr(self.pipe, "vae", None), "config", None), "block_out_channels", (0,)
        )
        factor = getattr(self.pipe, "vae_scale_factor", 2 ** (len(widths) - 1))
        size = [self.arguments.get("height", factor * height), self.arguments.get("width", factor * width)]
        return (3, *size)

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

    def forward(self, noise: Tensor, cond: Cond) -> Images:
        cond = self._checked(noise, cond)
        steps = cond[_STEP_NOISE].unbind(1) if _STEP_NOISE in cond else ()
        draws = Draws([noise, *steps])
        arguments = self._arguments(self._takes, len(noise), cond)
        out = self._run(self.pipe, arguments, {"noise": noise, **cond}, draws, self._step_seed)
        self._refuse_undrawn(draws, len(steps))
        return self._image(out, noise.dtype)

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
        if tuple(images.shape[1:]) != tuple(self.image_shape):
            raise InputError(
                f"this sampler makes images of {tuple(self.image_shape)}, but was given {tuple(images.shape[1:])}; "
                "resize them first"
            )
        if not bool(((images >= 0) & (images <= 1)).all()):
            raise InputError(
                "images must lie in [0, 1], since pipelines take any below 0 for images in [-1, 1], but "
                f"they reach from {float(images.min()):g} to {float(images.max()):g}"
            )
        if len(seeds) != len(images):
            raise InputError(f"there are {len(images)} images and {len(seeds)} seeds; give one for each")
        if _STEP_NOISE in cond:
            raise InputError("the noise of the steps follows from seeds=; leave cond['step_noise'] out")
        cond, takes = self._checked_cond(cond, len(images)), arguments_of(type(self._img2img))
        arguments = self._arguments(takes, len(images), cond)
        for name in {"height", "width"} - {*takes.names}:
            arguments.pop(name, None)  # they are the image's own there
        arguments["generator"] = [torch.Generator().manual_seed(seed) for seed in seeds]
        arguments |= {"image": images, "strength": strength}
        seed = seeds[0] ^ 0x57E9
        out = self._run(self._img2img, arguments, {"image": images, **cond}, Draws(), seed)
        return self._image(out, images.dtype)

    def check_image_to_image(self) -> None:
        """Raise unless diffusers has an image-to-image pipeline of this family.

        Raises:
            InputError: it has none, or one that does not start from the noised image.
        """
        if self._img2img is None:
            self._img2img = image_to_image(self.pipe)

    def _run(
        self, pipe: Any, arguments: dict[str, Any], named: Mapping[str, Tensor], draws: Draws, seed: int
    ) -> Any:
        """What a pipeline's call returns, with a graph to those of the named tensors that require a gradient."""
        given = {k: t for k, t in named.items() if t.requires_grad} if torch.is_grad_enabled() else {}
        weights: list[Tensor] = list(self.parameters())
        wanted = torch.is_grad_enabled() and bool(given or any(w.requires_grad for w in weights))
        with torch.random.fork_rng(self._devices()):
            torch.manual_seed(seed)  # for schedulers that draw without a generator
            call = PipelineCall(pipe, self.adjoint, self._watch(draws), quiet=True)
            out = call.run((), arguments, given, weights, wanted)
        self.stats = call.stats
        return out

    def _image(self, out: Any, dtype: torch.dtype) -> Tensor:
        image = out[0]
        if not isinstance(image, Tensor) or image.ndim != 4:
            got = tuple(image.shape) if isinstance(image, Tensor) else type(image).__name__
            raise InputError(
                f"{type(self.pipe).__name__} returned {got}, not images (batch, 3, height, width); "
                "use differentiable(pipe) for video and audio"
            )
        return image.to(dtype)

    def _refuse_undrawn(self, draws: Draws, steps: int) -> None:
        """Raise unless the pipeline drew the noise, and the noise of every step but the last.

        The last step of most stochastic schedulers adds no noise.

        Raises:
            InputError: part of the noise was not drawn.
        """
        kind, scheduler = type(self.pipe).__name__, type(getattr(self.pipe, "scheduler", None)).__name__
        if draws.left > steps:
            raise InputError(f"{kind} draws no noise, so the sampler's noise has no influence on its image")
        if draws.left and (draws.left > 1 or steps == 1):
            raise InputError(
                f"cond['step_noise'] holds noise for {steps} draws, but {scheduler} drew {steps - draws.left} times "
                f"within its {self.steps} steps, so the rest has no influence and no gradient; use an ancestral or SDE "
                "scheduler, and give one entry for each draw"
            )

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
        )
        made._example = self._example
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
        device = self.pipe._execution_device
        return [device] if device.type == "cuda" else []

    def _arguments(self, takes: Arguments, batch: int, cond: Cond) -> dict[str, Any]:
        """The arguments to pass to a pipeline's call: those of ours that its signature has, and the conditioning."""
        generator = torch.Generator(self.pipe._execution_device).manual_seed(self._step_seed)
        ours = {
            "num_inference_steps": self.steps,
            "output_type": "pt",
            "return_dict": False,
            "generator": generator,
            "negative_prompt": None,  # the default of some is "", which they refuse beside embeddings
        }
        if not any(name.endswith("embeds") for name in cond):
            ours["batch_size"] = batch
        if takes.guidance:
            ours[takes.guidance] = float(self.guidance_scale)
        ours = {name: value for name, value in ours.items() if name in takes.names}
        named = as_given(takes, {k: v for k, v in cond.items() if k != _STEP_NOISE})
        return {**ours, **self.arguments, **named}

    def _drawn(self) -> tuple[int, ...]:
        """The shape of the pipeline's first noise, found by running the pipeline up to its first denoiser call."""
        if self._example is None:
            self._example = self.encode("") if self._takes.encoded else Cond()
        draws = Draws()
        with Watch(draws=draws), torch.random.fork_rng(self._devices()):
            arguments = self._arguments(self._takes, 1, self._example.map(Tensor.detach))
            try:
                run_until(self.pipe, lambda _: {}, arguments, StopAtFirstCall())
            except (RuntimeError, ValueError, TypeError) as error:
                tensors = {name: each for name, each in arguments.items() if isinstance(each, Tensor)}
                reason = explained(error, self.pipe, denoisers(self.pipe), tensors)
                if reason is None or isinstance(error, AdjointDPMError):
                    raise
                raise reason from error
        shapes = draws.shapes
        if len(shapes) != 1:
            raise InputError(
                f"{type(self.pipe).__name__} draws noise {len(shapes)} times before its first step, so it is unknown "
                "which one the image starts from; use differentiable(pipe)"
            )
        return shapes[0][1:]

    def _checked(self, noise: Tensor, cond: Cond) -> Cond:
        cond = self._checked_cond(cond, len(noise))
        check_noise(noise, self.latent_shape)
        return cond

    def _checked_cond(self, cond: Cond, batch: int) -> Cond:
        check_cond(cond)
        self._refuse_unknown(cond, type(self.pipe).__name__)
        self._refuse_ours(cond)
        for name in {*self._takes.conditioning} - self._takes.masks:
            if name in cond and not cond[name].is_floating_point():
                raise InputError(f"cond[{name!r}] must be floating point, but is {cond[name].dtype}")
        scale = cond.get(str(self._takes.guidance))
        if scale is not None and scale.ndim:
            raise InputError(
                f"cond[{self._takes.guidance!r}] must be one number for the whole batch, a 0-dimensional tensor, but "
                f"has shape {tuple(scale.shape)}"
            )
        cond = for_batch(followed(cond), batch)
        if self._example is None:
            self._example = cond.map(lambda tensor: tensor[:1] if tensor.ndim else tensor)
        return cond

    def _refuse_ours(self, names: Iterable[str]) -> None:
        for name in names:
            if name in _OURS or (name == self._takes.guidance and names is self.arguments):
                instead = _OURS.get(name, "guidance_scale=")
                raise InputError(
                    f"the sampler itself passes {name} to the pipeline; give {instead} instead"
                )

    def _refuse_unknown(self, names: Iterable[str], kind: str) -> None:
        known = {*self._takes.names, *self._takes.lengths, _STEP_NOISE}
        unknown = sorted(set(names) - known)
        if unknown:
            raise InputError(
                f"{kind} takes no {', '.join(unknown)}; it takes {', '.join(self._takes.names)}"
            )
