"""Any pipeline of diffusers, differentiable: its own `__call__`, its own scheduler, exact gradients.

    x_{i+1} = step_i(x_i, F(x_i, t_i, cond))        F the denoisers, step_i the pipeline and its scheduler

The pipeline's code runs as it is, under autograd; each call of a denoiser is kept, recomputed or run
without a graph as the adjoint says, and the VAE is recomputed by blocks. The scheduler is never run again,
for it has a memory and draws noise.
"""

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ._types import AdjointDPMError, InputError, NonFiniteError, Run, Stats, direct
from .adjoints import Adjoint, Checkpointed, Truncated
from .adjoints.base import recomputed, without_graph
from .adjoints.discrete import Discrete
from .adjoints.ledger import Ledger
from .decoding import outermost
from .guards import (
    explained,
    refuse_cut,
    refuse_hooks,
    refuse_output,
    refuse_pipeline,
    refuse_untracked,
    tensors_of,
)
from .prompts import call_names
from .replay import Replay, attentions_of
from .twins import denoisers, parts, twin
from .watch import Watch

__all__ = ["PipelineCall", "differentiable"]


@contextmanager
def differentiable(pipe: Any, adjoint: Adjoint | None = None) -> "Iterator[PipelineCall]":
    """The pipeline's own call, with gradients.

        with adp.differentiable(pipe) as call:
            image = call(prompt_embeds=embeds, latents=noise, output_type="pt").images
        metric(image).backward()

    Use it for any pipeline and scheduler of diffusers, Modular Diffusers included; for the paper's adjoint,
    another solver or a gradient of the time grid use `FlowSampler`. The pipeline is not changed, and the
    backward pass may run when the context has closed.

    Args:
        pipe: a pipeline; its modules are shared.
        adjoint: `Checkpointed()` by default, or `Backprop()`, or `Truncated(last=)`.
    Yields:
        what is called with the pipeline's own arguments and returns its own result. `.stats` tells what
        the newest call and its backward pass held and did. With output_type="pt" the pipeline clamps
        pixels, and those that it cuts have no gradient; `.stats.clamped` is their share.
    Raises:
        InputError: `Continuous`, which needs an ODE; no denoiser in the pipeline; and, when called, whatever
            would lose the gradient (each message says what to do).
    """
    call = PipelineCall(pipe, Checkpointed() if adjoint is None else adjoint)
    try:
        yield call
    finally:
        call.closed = True


class PipelineCall:
    """A pipeline's `__call__` with gradients: see `differentiable`.

    Args:
        pipe: the pipeline.
        adjoint: how the gradient is made.
        watch: what to do about the pipeline's clamps and draws; made anew for each call.
        quiet: without the pipeline's progress bar.
    """

    def __init__(
        self, pipe: Any, adjoint: Adjoint, watch: Callable[[], Watch] = Watch, quiet: bool = False
    ) -> None:
        if not isinstance(adjoint, Discrete) or (isinstance(adjoint, Truncated) and adjoint.repeats > 1):
            raise InputError(
                f"{adjoint!r} needs steps of this library's own, and a pipeline takes its scheduler's; "
                "use FlowSampler.from_pipeline(pipe, adjoint=...) for it, or Checkpointed() here"
            )
        self._parts = denoisers(pipe)
        if not self._parts:
            raise InputError(
                f"{type(pipe).__name__} has no denoiser: none of its modules is told the time (has a parameter "
                "of its forward called timestep, t or the like)"
            )
        self._pipe, self._adjoint, self._watch, self._quiet = pipe, adjoint, watch, quiet
        self.stats = Stats()
        self.closed = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.closed:
            raise InputError(
                "this call's context has closed; open another one: with differentiable(pipe) as call"
            )
        refuse_untracked()
        arguments = _named(self._pipe, args, kwargs)
        refuse_output(self._pipe, arguments)
        refuse_pipeline(self._pipe, arguments)
        given = tensors_of(arguments)
        weights = _weights(self._pipe)
        if not given and not any(weight.requires_grad for weight in weights):
            raise InputError(
                "neither an argument nor a weight of the pipeline requires a gradient; call "
                "latents.requires_grad_(), prompt_embeds.requires_grad_() or pipe.unet.requires_grad_()"
            )
        return self.run(args, kwargs, given, weights)

    def run(
        self,
        args: Any,
        kwargs: Any,
        given: dict[str, Tensor],
        weights: list[Tensor],
        wanted: bool = True,
    ) -> Any:
        """The pipeline's result; if its gradient is wanted, with the promise that its graph is whole."""
        self.stats = Stats()
        shared = [*weights, *(t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor))]
        with self._watch() as watch:
            sampling = _Sampling(self._adjoint, self.stats, shared, watch, wanted)
            other = twin(self._pipe, sampling)
            if self._quiet:
                other.set_progress_bar_config(disable=True)
            sampling.pipe = weakref.ref(other)
            try:
                out = other(*args, **kwargs)
            except (RuntimeError, TypeError, AttributeError, LookupError, ValueError) as error:
                reason = (
                    None
                    if isinstance(error, AdjointDPMError)
                    else explained(error, self._pipe, self._parts)
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
        return out


_SWITCH = threading.RLock()  # the VAE's switch is one for all threads


class _Sampling:
    """One run of a pipeline: its denoisers' policy and its accounts.

    `pipe` is the pipeline that runs, by a weak reference: a circle would keep the run's graphs alive.
    """

    pipe: Callable[[], Any]

    def __init__(
        self, adjoint: Discrete, stats: Stats, shared: list[Tensor], watch: Watch, wanted: bool
    ) -> None:
        self.adjoint, self.stats, self.watch, self.wanted = adjoint, stats, watch, wanted
        self.ledger = Ledger(stats, shared)
        self.nodes: dict[str, list[Any]] = {}
        self._announced = self._total = 0
        self._fresh = True  # whether the next denoiser call begins another step
        self._step: list[Replay] = []  # the present step's calls
        self._inside: dict[int, list[nn.Module]] = {}
        self._attentions: dict[int, list[Any]] = {}
        self._run: Run = direct
        self._policy: Run = direct

    def __deepcopy__(self, memo: Any) -> "_Sampling":
        return self  # a pipeline may copy its scheduler, which refers to this

    def evaluate(self, name: str, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if self.wanted and not torch.is_grad_enabled():
            raise InputError(
                f"the pipeline calls its {name} with gradients switched off in its own code, so what depends "
                "on that call would lose its gradient; this pipeline cannot be differentiated as it is"
            )
        with self.watch.paused():
            if self._fresh:
                self._begin(name, module, args, kwargs)
            if id(module) not in self._inside:
                self._inside[id(module)], self._attentions[id(module)] = (
                    list(module.modules()),
                    attentions_of(module),
                )
            refuse_hooks(name, self._inside[id(module)], self._policy is recomputed)
            call = Replay(name, module, args, kwargs, self._attentions[id(module)], self._step, self.stats)
            out = self._run(call, *call.tensors)
            self._check_finite(name, out, call.tensors)
        if self._policy is recomputed and not module.training:  # with dropout it would draw again
            call.made(out)
            self._step.append(call)
        nodes = [t.grad_fn for t in tree_leaves(out) if isinstance(t, Tensor) and t.grad_fn is not None]
        if nodes:
            self.nodes[f"evaluation {len(self.nodes)} of {name}"] = nodes
        return out

    def _begin(self, name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        i = self.ledger.call
        self._fresh, self.watch.finished, self._step = False, False, []
        if i == 0:
            self._announced = _announced(self.pipe())
        self._total = max(self._announced, i + 1)
        self._policy = self.adjoint.policy(i, self._total, self.ledger.graph) if self.wanted else direct
        if i == 0 and self._policy is without_graph:
            state = next(iter([*args, *kwargs.values()]))
            if isinstance(state, Tensor) and state.requires_grad:
                raise InputError(
                    f"{self.adjoint!r} makes no gradient through the first of {self._total} steps, so it has none "
                    f"for the noise or picture that {name} starts from; use Checkpointed(), or pass it without "
                    "requires_grad"
                )
        self._run = self.ledger.enter(self._policy)

    def _check_finite(self, name: str, out: Any, given: list[Tensor]) -> None:
        first = next(t for t in tree_leaves(out) if isinstance(t, Tensor))
        if not bool(torch.isfinite(first).all()):
            fine = all(bool(torch.isfinite(tensor).all()) for tensor in given)
            raise NonFiniteError(
                f"{name} returned NaN or infinity at step {self.ledger.call - 1} of {self._total}; its input was "
                f"{'finite' if fine else 'not finite either'}. Look at its weights and dtype (float16 overflows "
                "above 65504), or lower the guidance scale"
            )

    def stepped(self) -> None:
        self._fresh = True
        self.watch.finished = self.ledger.call >= self._total

    def decode(self, name: str, module: Any, latents: Tensor, *args: Any, **kwargs: Any) -> Any:
        self.watch.finished = True

        def by_blocks(latents: Tensor, run: Run) -> Any:
            # The VAE's own switch for checkpointing lets us say how a block is run. A user's is left on.
            able = getattr(module, "_supports_gradient_checkpointing", False)
            switch = able and run is not direct and not module.is_gradient_checkpointing
            if switch:
                module.enable_gradient_checkpointing(outermost(run))
            try:
                return module.decode(latents, *args, **kwargs)
            finally:
                if switch:
                    module.disable_gradient_checkpointing()

        if not self.wanted:
            return by_blocks(latents, direct)
        with _SWITCH:
            return self.adjoint.decode(by_blocks, latents, list(module.parameters()), self.stats)

    def check(self) -> None:
        """That the denoisers ran, and as many steps as the policies were chosen for."""
        calls = self.ledger.call
        if calls == 0:
            raise InputError(
                "the pipeline has not called a denoiser at all, so nothing of it was differentiated"
            )
        if isinstance(self.adjoint, Truncated) and calls != self._announced:
            raise InputError(
                f"the pipeline announced {self._announced} steps and took {calls}, so {self.adjoint!r} would "
                "differentiate others than the last ones; use Checkpointed() with this pipeline"
            )


def _announced(pipe: Any) -> int:
    """The number of steps ahead, as the pipeline or its scheduler says; 1 if neither does."""
    if "_num_timesteps" in vars(pipe):
        return pipe._num_timesteps
    schedulers = [part for part in vars(pipe).values() if hasattr(part, "set_timesteps")]
    times = getattr(schedulers[0], "timesteps", None) if schedulers else None
    return 1 if times is None else len(times)


def _named(pipe: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    """A call's arguments by name."""
    return {**dict(zip(call_names(pipe), args, strict=False)), **kwargs}


def _weights(pipe: Any) -> list[Tensor]:
    modules = [part for _, part in parts(pipe) if isinstance(part, nn.Module)]
    return [weight for module in modules for weight in module.parameters()]


def _opened(out: Any) -> Any:
    """What a result holds: a state of Modular Diffusers keeps its values in a dictionary."""
    return getattr(out, "values", out) if not isinstance(out, dict | list | tuple | Tensor) else out
