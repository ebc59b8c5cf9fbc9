"""Single results of a pipeline's own `__call__`.

Each method runs the call on a shallow copy of the pipeline, in which the scheduler (and little else) is replaced, and
leaves the call by an exception as soon as the result is known:

    output   the network's guided output at (x, t): the scheduler has one time, and its `step` receives the result
    decode   the image of latents: the scheduler has no time, and `postprocess` receives the result before it clamps
    times    the times that its scheduler would visit, with the shift that it would use
    sizes    the shape of the latents and the size of the image

So guidance, packing, scaling of latents and time, signs and learned variances are the pipeline's own code. A result
costs 1-3 ms besides the network, and the pipeline itself is never changed.
"""

import copy
import inspect
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from .._types import InputError
from ..flow.denoisers import explained
from .call_signature import Arguments, arguments_of
from .checks import refused
from .run_until import Stop, run_until, stop
from .torch_interception import Numbers, numbered

__all__ = ["ProbedPipeline"]


class _Probe:
    """A scheduler that visits given times, and leaves the call with the model's output.

    Pipelines inspect the signature of `set_timesteps`, so its arguments are named although none is read.
    """

    order = 1
    init_noise_sigma = 1.0

    def __init__(self, config: Any, timesteps: Tensor | None) -> None:
        self.config = config
        self.timesteps: Any = timesteps

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        timesteps: Any = None,
        sigmas: Any = None,
        mu: float | None = None,
    ) -> None:
        if self.timesteps is None:
            schedule = {"timesteps": timesteps, "sigmas": sigmas, "mu": mu}
            steps = {"num_inference_steps": num_inference_steps} if sigmas is None else {}
            raise Stop({**steps, **{k: v for k, v in schedule.items() if v is not None}})
        self.timesteps = self.timesteps.to(device)

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Do nothing, since no step is counted."""

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        return sample

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, **_: Any) -> Any:
        raise Stop(model_output)


class _Fed(nn.Module):
    """A network that receives `x` in place of its input, for pipelines that draw their noise themselves."""

    def __init__(self, network: Any, x: Tensor) -> None:
        super().__init__()
        self.network, self.x = network, x
        self.config, self.dtype, self.device = network.config, network.dtype, network.device

    def forward(self, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        return self.network(self.x, *args, **kwargs)


class _Undecoded:
    """A VAE whose `decode` leaves the call, to find out whether a pipeline gets that far."""

    def __init__(self, vae: Any) -> None:
        self._vae = vae

    def __getattr__(self, name: str) -> Any:
        return getattr(self._vae, name)

    decode = staticmethod(stop)


class ProbedPipeline:
    """A pipeline whose call can be run up to single results.

    Args:
        pipe: a pipeline that takes latents and embeddings, or one without a prompt.
        height: of the image, in pixels; the pipeline's own if None.
        width: of the image, in pixels; the pipeline's own if None.

    Raises:
        InputError: the pipeline needs other inputs as well, or the source of its call cannot be read.
    """

    def __init__(self, pipe: Any, height: int | None = None, width: int | None = None) -> None:
        self.pipe = pipe
        self.takes: Arguments = arguments_of(type(pipe))
        _refuse_other_inputs(type(pipe).__name__, self.takes)
        fixed = {
            "height": height,
            "width": width,
            "num_inference_steps": 1,
            "output_type": "pt",
            "return_dict": False,
            "use_resolution_binning": False,
        }
        self.fixed = {k: v for k, v in fixed.items() if k in self.takes.names and v is not None}
        if "negative_prompt" in self.takes.names:  # "" by default in some, which clashes with embeddings
            self.fixed["negative_prompt"] = None
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._checked: set[Any] = set()

    def _call_until_result(self, replaced: dict[str, Any], **arguments: Any) -> Any:
        try:
            found = run_until(self.pipe, lambda _: replaced, {**self.fixed, **arguments})
        except (ValueError, TypeError) as error:
            if (reason := refused(error, self.pipe)) is None:
                raise
            raise reason from error
        if found is None:
            raise InputError(
                f"{type(self.pipe).__name__} ended without a call of its scheduler or decoder, so its denoiser cannot "
                "be evaluated"
            )
        return found

    def _probe(self, timesteps: Tensor | None) -> dict[str, Any]:
        return {"scheduler": _Probe(self.pipe.scheduler.config, timesteps)}

    def output(self, x: Tensor, t: Tensor, arguments: Mapping[str, Any]) -> Tensor:
        """The network's output, guidance included.

        Args:
            x: the network's input, (batch, *shape).
            t: the time in the pipeline's unit, 0-dimensional.
            arguments: the conditioning, as arguments of the call.

        Returns:
            the output, (batch, *shape).
        """
        self._see(arguments)
        replaced = self._probe(t.reshape(1))
        if "latents" in self.takes.names:
            others = {
                k: v
                for k, v in arguments.items()
                if k not in (*self.takes.conditioning, self.takes.guidance)
            }
            scales = numbered(others)  # such as the guidance scale, an input of distilled networks
            with Numbers() if scales else nullcontext():
                return self._call_until_result(replaced, latents=x, **{**arguments, **scales})
        return self._call_until_result(
            {**replaced, "unet": _Fed(self.pipe.unet, x)}, generator=torch.Generator()
        )

    def _see(self, arguments: Mapping[str, Any]) -> None:
        """Store the shapes of one sample's conditioning, for stand-ins."""
        given = {name: each for name, each in arguments.items() if name in self.takes.conditioning}
        self._shapes = {
            name: tuple((each[0] if isinstance(each, list) else each[:1]).shape)
            for name, each in given.items()
        }

    def check_decoding(self, latents: Tensor, vae: Any, arguments: Mapping[str, Any]) -> None:
        """Raise if the pipeline would not decode some latents, before the sampling that makes them.

        Args:
            latents: noise in the shape of the latents.
            vae: the decoder, or None.
            arguments: the conditioning, as arguments of the call.

        Raises:
            InputError: the pipeline refuses the latents, or stand-ins for this conditioning.
            RuntimeError: it raises another error.
        """
        self._see(arguments)
        key = (latents.shape, tuple(self._shapes.items()))
        if vae is not None and key not in self._checked:
            try:
                self.decode(latents, _Undecoded(vae))
            except RuntimeError as error:
                given = {k: v for k, v in arguments.items() if isinstance(v, Tensor)}
                if (reason := explained(error, given, type(self.pipe).__name__)) is None:
                    raise
                raise reason from error
            self._checked.add(key)

    def decode(self, latents: Tensor, vae: Any) -> Tensor:
        """Decode latents.

        Args:
            latents: (batch, *shape), in the VAE's dtype.
            vae: the decoder.

        Returns:
            images (batch, channels, height, width), nominally in [0, 1], not clamped.
        """
        processor = copy.copy(self.pipe.image_processor)
        processor.postprocess = stop
        own = {"vae": vae, "image_processor": processor, "safety_checker": None, "watermark": None}
        none = torch.zeros(0, device=latents.device)
        stand_ins = self._stand_ins(len(latents), latents)
        image = self._call_until_result({**self._probe(none), **own}, latents=latents, **stand_ins)
        return image / 2 + 0.5 if processor.config.get("do_normalize", True) else image

    def timestep_arguments(self, steps: int, like: Tensor) -> dict[str, Any]:
        """The arguments that the pipeline passes to its scheduler's `set_timesteps`.

        Args:
            steps: the number of steps.
            like: a tensor, for the dtype and device of stand-ins.

        Returns:
            the arguments, by name.
        """
        arguments = {**self._generator(), **self._stand_ins(1, like), "num_inference_steps": steps}
        return self._call_until_result(self._probe(None), **arguments)

    def times(self, steps: int, like: Tensor) -> Tensor:
        """The times that the pipeline's own scheduler visits.

        Args:
            steps: the number of steps.
            like: a tensor, for the dtype and device of stand-ins.

        Returns:
            the times, decreasing, in float64.
        """
        own = self.pipe.scheduler
        scheduler = type(own).from_config(own.config)
        scheduler.set_timesteps(**self.timestep_arguments(steps, like))
        return scheduler.timesteps.to("cpu", torch.float64)

    def sizes(self, like: Tensor) -> tuple[tuple[int, ...], int, int]:
        """The shape of one sample's latents, and the image's height and width in pixels.

        Args:
            like: a tensor, for the dtype and device of stand-ins.

        Returns:
            the shape, the height and the width.
        """
        own: Callable[..., Any] = self.pipe.prepare_latents
        signature = inspect.signature(own)

        def prepare_latents(*args: Any, **kwargs: Any) -> Any:
            size = signature.bind(*args, **kwargs).arguments
            made = own(*args, **kwargs)
            latents = made[0] if isinstance(made, tuple) else made
            raise Stop((tuple(latents.shape[1:]), int(size["height"]), int(size["width"])))

        # The scheduler visits no time, so that the call continues if it sets the times before the latents.
        replaced = {**self._probe(torch.zeros(0)), "prepare_latents": prepare_latents}
        return self._call_until_result(replaced, **self._generator(), **self._stand_ins(1, like))

    def _generator(self) -> dict[str, torch.Generator]:
        """A separate generator for latents that are not used, so that the global one is not advanced."""
        return {"generator": torch.Generator()} if "generator" in self.takes.names else {}

    def _stand_ins(self, batch: int, like: Tensor) -> dict[str, Any]:
        """Embeddings that stand in for real ones, for results that do not depend on them, without guidance."""
        out: dict[str, Any] = {self.takes.guidance: 0.0} if self.takes.guidance else {}
        for name in self.takes.conditioning:
            if name.startswith("negative_") or (self._shapes and name not in self._shapes):
                continue  # such as a mask, which may be left out if it is all ones
            if name in self.takes.lists:
                out[name] = [like.new_zeros(self._shapes.get(name, (1, 1)))] * batch
                continue
            flat = name in self.takes.masks or "pooled" in name
            shape = self._shapes.get(name, (1, 1) if flat else (1, 1, 1))
            dtype = torch.long if name in self.takes.masks else like.dtype
            out[name] = torch.ones((batch, *shape[1:]), dtype=dtype, device=like.device)
        return out


def _refuse_other_inputs(kind: str, takes: Arguments) -> None:
    prompted = takes.conditioning or "class_labels" in takes.names
    if takes.needed or ("latents" not in takes.names and prompted):
        lacking = f"needs {', '.join(takes.needed)}" if takes.needed else "takes no latents"
        raise InputError(
            f"FlowSampler runs pipelines that make an image from latents and a prompt, or from noise "
            f"alone, but {kind} {lacking}"
        )
