"""Any pipeline of diffusers, differentiable: its own `__call__`, its own scheduler, exact gradients.

    x_{i+1} = step_i(x_i, F(x_i, t_i, cond))        F the denoisers, step_i the pipeline and its scheduler

The pipeline's own code runs under autograd. The graph of each denoiser call is kept, recomputed or not made, as the
adjoint says, and the VAE is recomputed by blocks. The scheduler is never run again, since it holds state and draws
noise.
"""

import weakref
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from .._types import AdjointDPMError, InputError, Stats
from ..adjoints import Adjoint, Checkpointed
from ..adjoints.discrete import Discrete
from ..adjoints.surrogate import Surrogate
from .call_signature import call_names
from .checks import (
    explained,
    followed,
    refuse_batch,
    refuse_cut,
    refuse_output,
    refuse_pipeline,
    refuse_placeholders,
    refuse_untracked,
    tensors_of,
    warn_of_weights,
)
from .execution import PipelineRun
from .gradient_proxy import denoisers, gradient_proxy, parts
from .torch_interception import Watch, numbered

__all__ = ["PipelineCall", "differentiable"]


def differentiable(pipe: Any, adjoint: Adjoint | None = None) -> "PipelineCall":
    """Return the pipeline's own call, with gradients.

        call = adp.differentiable(pipe)
        image = call(prompt_embeds=embeds, latents=noise, output_type="pt").images
        metric(image).backward()

    Use it for any pipeline and scheduler of diffusers, Modular Diffusers included. For the paper's adjoint, another
    solver or a gradient of the time grid use `FlowSampler`. The pipeline is not changed, so there is nothing to close;
    `with adp.differentiable(pipe) as call:` means the same.

    Args:
        pipe: a pipeline; its modules are shared.
        adjoint: `Checkpointed()` by default, or `Backprop()`, `Truncated(last=)`, `DRTune(early_stop=0.0)` or
            `FlowBP(connector="sparse")`.

    Returns:
        A callable that takes the pipeline's own arguments and returns its own result. Its `stats` say what the newest
        call and its backward pass did and held. With output_type="pt" the pipeline clamps pixels, and those that it
        clamps have no gradient; `stats.clamped` is their share.

    Raises:
        InputError: the adjoint needs an ODE, or the pipeline has no denoiser; and, when it is called, whatever would
            lose the gradient (each message says what to do).

    Examples:
        >>> import adjointdpm as adp, torch
        >>> pipe = adp.load_bundled("emoji").model.pipe
        >>> pipe.set_progress_bar_config(disable=True)
        >>> noise = torch.randn(1, 8, 16, 16, requires_grad=True)
        >>> call = adp.differentiable(pipe)
        >>> image = call("a cat", latents=noise, num_inference_steps=2, output_type="pt").images
        >>> image.mean().backward()
        >>> noise.grad.shape
        torch.Size([1, 8, 16, 16])
    """
    return PipelineCall(pipe, Checkpointed() if adjoint is None else adjoint)


class PipelineCall:
    """A pipeline's `__call__` with gradients: see `differentiable`.

    Args:
        pipe: the pipeline.
        adjoint: how the gradient is made.
        watch: makes the interception of the pipeline's clamps and draws, once for each call.
        quiet: whether to hide the pipeline's progress bar.
        exchanged: gives the parts to exchange, by name, for the proxy that runs.
    """

    def __init__(
        self,
        pipe: Any,
        adjoint: Adjoint,
        watch: Callable[[], Watch] = Watch,
        quiet: bool = False,
        exchanged: Callable[[Any], Mapping[str, Any]] | None = None,
    ) -> None:
        if isinstance(adjoint, Surrogate):
            adjoint = adjoint.in_pipeline()
        if not isinstance(adjoint, Discrete) or getattr(adjoint, "repeats", 1) > 1:
            raise InputError(
                f"{adjoint!r} needs steps of this library's own, and a pipeline takes its scheduler's; "
                "use FlowSampler.from_pipeline(pipe, adjoint=...) for it, or Checkpointed() here"
            )
        self._parts = denoisers(pipe)
        if not self._parts:
            raise InputError(
                f"{type(pipe).__name__} has no denoiser: none of its modules takes the time (a parameter "
                "of its forward called timestep, t or the like)"
            )
        self._pipe, self._adjoint, self._watch, self._quiet = pipe, adjoint, watch, quiet
        self._exchanged = exchanged
        self.stats = Stats()

    def __enter__(self) -> "PipelineCall":
        return self

    def __exit__(self, *error: object) -> None:
        """Restore nothing, since nothing was changed."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        refuse_untracked()
        arguments = _named(self._pipe, args, kwargs)
        refuse_output(self._pipe, arguments)
        return self.run(args, kwargs, tensors_of(arguments), _weights(self._pipe))

    def run(
        self,
        args: Any,
        kwargs: Any,
        given: dict[str, Tensor],
        weights: list[Tensor],
        wanted: bool = True,
    ) -> Any:
        """Run the pipeline's call.

        Args:
            args: the positional arguments of the call.
            kwargs: its keyword arguments.
            given: the arguments that require a gradient, by name.
            weights: the weights of the pipeline.
            wanted: whether a gradient is required; then the graph of the result is checked for what it must reach.

        Returns:
            the pipeline's own result.

        Raises:
            InputError: something would lose the gradient, or does not fit.
            RuntimeError: the pipeline raised it for another reason.
            TypeError: likewise.
            AttributeError: likewise.
            LookupError: likewise.
            ValueError: likewise.
        """
        self.stats = Stats()
        named = _named(self._pipe, args, kwargs)
        refuse_batch(self._pipe, named)
        if wanted:
            refuse_pipeline(self._pipe, named)
            refuse_placeholders(self._parts)
            kwargs = followed(kwargs)
            if given:
                modules = {name: part for name, part in parts(self._pipe) if isinstance(part, nn.Module)}
                warn_of_weights(self._pipe, modules)
        asked = bool(given) or any(weight.requires_grad for weight in weights)
        shared = [*weights, *(t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor))]
        watch = self._watch()
        sampling = PipelineRun(self._adjoint, self.stats, shared, watch, wanted, asked)
        other = gradient_proxy(self._pipe, sampling)
        if self._exchanged is not None:
            vars(other).update(self._exchanged(other))
        if self._quiet:
            other.set_progress_bar_config(disable=True)
        sampling.pipe = weakref.ref(other)
        with watch:
            try:
                out = other(*numbered(dict(enumerate(args))).values(), **numbered(kwargs))
            except (RuntimeError, TypeError, AttributeError, LookupError, ValueError) as error:
                reason = (
                    None
                    if isinstance(error, AdjointDPMError)
                    else explained(error, self._pipe, self._parts, _tensors(named))
                )
                if reason is None:
                    raise
                raise reason from error
        self.stats.clamped = watch.clamped
        sampling.check()
        if not wanted:
            return out
        found = [t for t in tree_leaves(_opened(out)) if isinstance(t, Tensor) and t.requires_grad]
        refuse_cut(found, given, sampling.nodes)
        arguments = _named(self._pipe, args, kwargs).items()
        read = {k: t for k, value in arguments for t in tree_leaves(value) if isinstance(t, Tensor)}
        for each in found:
            self._adjoint.guard(each, sampling.modules, read, restored=frozenset({"processor"}))
        return out


def _named(pipe: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    """A call's arguments by name."""
    return {**dict(zip(call_names(type(pipe)), args, strict=False)), **kwargs}


def _tensors(named: dict[str, Any]) -> dict[str, Tensor]:
    return {name: each for name, each in named.items() if isinstance(each, Tensor)}


def _weights(pipe: Any) -> list[Tensor]:
    modules = [part for _, part in parts(pipe) if isinstance(part, nn.Module)]
    return [weight for module in modules for weight in module.parameters()]


def _opened(out: Any) -> Any:
    """The content of a result; a state of Modular Diffusers holds its values in a dictionary."""
    return getattr(out, "values", out) if not isinstance(out, dict | list | tuple | Tensor) else out
