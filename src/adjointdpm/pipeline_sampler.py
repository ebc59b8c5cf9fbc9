"""Any text-to-image pipeline of diffusers as a sampler: its own scheduler, pictures not clamped.

    image = pipeline(noise, cond; seed)     exact gradients of noise, cond, per-step noise and weights

The noise takes the place of the pipeline's own first draw, so that it need not have a `latents` argument
nor a packing we know; every further draw follows from `seed`, the same bits in each call.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ._types import Cond, InputError, Stats
from .adjoints import Adjoint, Checkpointed
from .pipelines import PipelineCall
from .prompts import call_names, encode_prompt
from .sampler import Images, Sampler
from .twins import denoisers, parts, twin
from .watch import Draws, Watch

__all__ = ["PipelineSampler"]

_STEP_NOISE = "step_noise"


class PipelineSampler(Sampler):
    """Sampling by a stock pipeline's own `__call__` and scheduler, with the gradient `adjoint` makes.

    Use it for pipelines and schedulers that `FlowSampler` does not know, those with noise in their steps
    among them. Not for pipelines that start from a picture: their first draw is not the noise; use
    `differentiable` there.

    Args:
        pipe: the pipeline; its modules are shared and it is not changed.
        steps: num_inference_steps, at least 1.
        guidance_scale: w of classifier-free guidance, written into what `encode` returns.
        seed: of the noise within steps (ancestral and SDE schedulers).
        adjoint: `Checkpointed()` by default, or `Backprop()`, or `Truncated(last=)`.
        arguments: further arguments of the pipeline's call, such as height and width.
    Besides the pipeline's own arguments a Cond may hold `step_noise` (batch, draws, *shape): what is drawn
    after the first noise, in order, as a variable; see `step_noise()`.
    Raises:
        InputError: steps < 1, `Continuous`, an argument the pipeline's call does not take, or a pipeline
            that `differentiable` refuses.
    """

    def __init__(
        self,
        pipe: Any,
        *,
        steps: int = 25,
        guidance_scale: float = 5.0,
        seed: int = 0,
        adjoint: Adjoint | None = None,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if steps < 1:
            raise InputError(f"steps must be at least 1, but is {steps}")
        self.steps, self.guidance_scale, self.seed = steps, guidance_scale, seed
        self.adjoint = Checkpointed() if adjoint is None else adjoint
        self.arguments = dict(arguments or {})
        self._names = call_names(pipe)
        unknown = sorted(set(self.arguments) - set(self._names))
        if unknown:
            raise InputError(
                f"{type(pipe).__name__} takes no {', '.join(unknown)}; it takes {', '.join(self._names)}"
            )
        self._pipe = pipe
        self._call = PipelineCall(pipe, self.adjoint)
        modules = {
            name.replace(".", "_"): part for name, part in parts(pipe) if isinstance(part, nn.Module)
        }
        self.modules_of_pipe = nn.ModuleDict(modules)
        self._example: Cond | None = None
        self._shape: tuple[int, ...] | None = None
        self.stats = Stats()

    @property
    def pipe(self) -> Any:
        """The pipeline itself."""
        return self._pipe

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Of one noise, as the pipeline itself draws it."""
        if self._shape is None:
            self._shape = self._drawn()
        return self._shape

    @property
    def image_shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """(3, height, width) of one picture."""
        *_, height, width = self.latent_shape
        widths = getattr(
            getattr(getattr(self._pipe, "vae", None), "config", None), "block_out_channels", (0,)
        )
        factor = getattr(self._pipe, "vae_scale_factor", 2 ** (len(widths) - 1))
        size = [self.arguments.get("height", factor * height), self.arguments.get("width", factor * width)]
        return (3, *size)

    def encode(self, prompts: Sequence[str] | str, negative: str = "") -> Cond:
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        if not prompts:
            raise InputError("encode needs at least one prompt, but the list is empty")
        return encode_prompt(self._pipe, prompts, negative, float(self.guidance_scale))

    def noise(self, batch: int = 1, seed: int = 0) -> Float[Tensor, "batch *shape"]:
        return self._normal((batch, *self.latent_shape), seed)

    def step_noise(self, batch: int = 1, seed: int = 0) -> Float[Tensor, "batch steps *shape"]:
        """Standard normal noise for the steps, to be passed as cond.replace(step_noise=...)."""
        return self._normal((batch, self.steps, *self.latent_shape), seed ^ 0x5EED)

    def forward(self, noise: Tensor, cond: Cond) -> Images:
        cond = self._checked(noise, cond)
        if self._example is None:
            self._example = cond.map(lambda tensor: tensor[:1] if tensor.ndim else tensor)
        steps = cond[_STEP_NOISE].unbind(1) if _STEP_NOISE in cond else ()
        draws = Draws([noise, *steps])
        given = {"noise": noise, **cond} if torch.is_grad_enabled() else {}
        given = {name: tensor for name, tensor in given.items() if tensor.requires_grad}
        weights: list[Tensor] = list(self.parameters())
        wanted = torch.is_grad_enabled() and bool(given or any(w.requires_grad for w in weights))
        arguments = self._arguments(len(noise), cond)
        with torch.random.fork_rng(self._devices()):
            torch.manual_seed(self._step_seed)  # for schedulers that draw without a generator
            call = PipelineCall(self._pipe, self.adjoint, self._watch(draws), quiet=True)
            out = call.run((), arguments, given, weights, wanted)
        self.stats = call.stats
        image = out[0]
        if not isinstance(image, Tensor) or image.ndim != 4:
            got = tuple(image.shape) if isinstance(image, Tensor) else type(image).__name__
            raise InputError(
                f"{type(self._pipe).__name__} returned {got}, not pictures (batch, 3, height, width); "
                "use differentiable(pipe) for video and audio"
            )
        return image.to(noise.dtype)

    def replace(self, **changes: Any) -> "PipelineSampler":
        settings = {
            "pipe": self._pipe,
            "steps": self.steps,
            "guidance_scale": self.guidance_scale,
            "seed": self.seed,
            "adjoint": self.adjoint,
            "arguments": self.arguments,
        }
        unknown = sorted(set(changes) - set(settings))
        if unknown:
            raise InputError(f"a PipelineSampler has no {', '.join(unknown)}; it has {', '.join(settings)}")
        made = PipelineSampler(**{**settings, **changes})
        made._example = self._example
        return made

    @staticmethod
    def _watch(draws: Draws) -> Callable[[], Watch]:
        return lambda: Watch(clamps=False, draws=draws)

    @property
    def _step_seed(self) -> int:
        return self.seed ^ 0x57E9  # noise(seed=) of the same number is another one's

    def _normal(self, shape: tuple[int, ...], seed: int) -> Tensor:
        first = next(iter(denoisers(self._pipe).values()))
        weight = next(first.parameters())
        dtype = torch.promote_types(weight.dtype, torch.float32)
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(shape, generator=generator, dtype=dtype).to(weight.device)

    def _devices(self) -> list[torch.device]:
        device = self._pipe._execution_device
        return [device] if device.type == "cuda" else []

    def _arguments(self, batch: int, cond: Cond) -> dict[str, Any]:
        """The pipeline's arguments, as far as its call knows them."""
        generator = torch.Generator(self._pipe._execution_device).manual_seed(self._step_seed)
        ours = {
            "num_inference_steps": self.steps,
            "guidance_scale": float(self.guidance_scale),
            "output_type": "pt",
            "return_dict": False,
            "generator": generator,
            "negative_prompt": None,  # some have "" for a default, and refuse it beside embeddings
        }
        if not any(name.endswith("embeds") for name in cond):
            ours["batch_size"] = batch
        ours = {name: value for name, value in ours.items() if name in self._names}
        return {**ours, **self.arguments, **{k: v for k, v in cond.items() if k != _STEP_NOISE}}

    def _drawn(self) -> tuple[int, ...]:
        """The shape of the pipeline's first noise: it is run as far as its first denoiser call."""
        if self._example is None:
            self._example = self.encode("") if "prompt_embeds" in self._names else Cond()
        draws = Draws()
        scout = twin(self._pipe, _Scout())
        scout.set_progress_bar_config(disable=True)
        with Watch(draws=draws), torch.random.fork_rng(self._devices()), suppress(_FirstCall):
            scout(**self._arguments(1, self._example.map(Tensor.detach)))
        shapes = draws.shapes
        if len(shapes) != 1:
            raise InputError(
                f"{type(self._pipe).__name__} draws noise {len(shapes)} times before its first step, so which one "
                "the picture starts from is not plain; use differentiable(pipe)"
            )
        return shapes[0][1:]

    def _checked(self, noise: Tensor, cond: Cond) -> Cond:
        if self._example is not None and tuple(noise.shape[1:]) != self.latent_shape:
            raise InputError(
                f"noise must be (batch, {', '.join(map(str, self.latent_shape))}), but is {tuple(noise.shape)}; "
                "make it with sampler.noise(batch, seed)"
            )
        if noise.dtype not in (torch.float32, torch.float64):
            raise InputError(
                f"noise must be float32 or float64, but is {noise.dtype}; the network may have any dtype"
            )
        unknown = [name for name in cond if name not in (*self._names, _STEP_NOISE)]
        if unknown:
            raise InputError(
                f"{type(self._pipe).__name__} takes no {', '.join(unknown)}; it takes {self._names}"
            )
        wide = {}
        for name, tensor in cond.items():
            if tensor.ndim and len(tensor) not in (1, len(noise)):
                raise InputError(
                    f"cond[{name!r}] is for a batch of {len(tensor)} and the noise for {len(noise)}; "
                    "give one prompt for all, or one for each"
                )
            one = tensor.ndim and len(tensor) == 1 < len(noise)
            wide[name] = tensor.expand(len(noise), *tensor.shape[1:]) if one else tensor
        return Cond(wide)


class _FirstCall(Exception):  # noqa: N818
    """A pipeline has come to its denoiser."""


class _Scout:
    """Lets a pipeline run up to its first denoiser call."""

    def evaluate(self, name: str, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        raise _FirstCall

    def decode(self, name: str, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        raise _FirstCall

    def stepped(self) -> None:
        pass
