"""One run of a pipeline's own call: how its denoisers and its decoder are executed, and what their graphs hold.

    policy of call i = adjoint.policy(i, N, bytes of one graph)        kept, recomputed or without a graph

A *call* is the denoising of one step. It begins with the first denoiser that is called after a step of the scheduler,
and consists of one or more evaluations of networks.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from .._types import GraphPolicy, InputError, NonFiniteError, Run, Stats, direct
from ..adjoints import Truncated
from ..adjoints.block_checkpointing import in_blocks
from ..adjoints.call_accounting import CallAccounting
from ..adjoints.discrete import Discrete
from ..adjoints.recompute import recomputed, without_graph
from ..adjoints.surrogate import DetachedCalls, without_state_graph
from .checks import refuse_blind, refuse_hooks
from .denoiser_call import Replay, attentions_of, dtype_of
from .torch_interception import Watch

__all__ = ["PipelineRun"]

_RUNS: dict[GraphPolicy, Run] = {
    GraphPolicy.KEEP: direct,
    GraphPolicy.RECOMPUTE: recomputed,
    GraphPolicy.NO_GRAPH: without_graph,
}


class PipelineRun:
    """Receives the calls of a pipeline's denoisers, VAE and scheduler in one run (see `gradient_proxy.CallHandlers`).

    `pipe` is a weak reference to the pipeline that runs, since a reference cycle would keep the graphs of the run
    alive.

    Args:
        adjoint: gives the policy of each call.
        stats: the record of the run.
        shared: tensors that exist anyway and are not counted.
        watch: is in force outside the denoisers.
        wanted: whether a gradient is required at all.
        asked: whether an argument or a weight requires a gradient; otherwise the prompt must, through its encoder.
    """

    pipe: Callable[[], Any]

    def __init__(
        self,
        adjoint: Discrete,
        stats: Stats,
        shared: list[Tensor],
        watch: Watch,
        wanted: bool,
        asked: bool,
    ) -> None:
        self.adjoint, self.stats, self.watch, self.wanted = adjoint, stats, watch, wanted
        self._asked = asked
        self.accounting = CallAccounting(stats, shared)
        self.nodes: dict[str, list[Any]] = {}
        self._announced = self._total = 0
        self._whole: set[str] = set()  # the denoisers whose output depends on their state
        self._fresh = True  # whether the next denoiser call begins another step
        self._step: list[Replay] = []  # the present step's calls
        self.modules: dict[str, nn.Module] = {}  # those that ran, by name
        self._inside: dict[int, tuple[list[nn.Module], list[Any], torch.dtype | None]] = {}
        self._policy = GraphPolicy.KEEP

    def __deepcopy__(self, memo: Any) -> "PipelineRun":
        return self  # a pipeline may copy its scheduler, which refers to this

    def evaluate(self, name: str, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if self.wanted and not torch.is_grad_enabled():
            raise InputError(
                f"the pipeline calls its {name} with gradients switched off in its own code, so what depends "
                "on that call would lose its gradient; this pipeline cannot be differentiated as it is"
            )
        with self.watch.paused(name, module):
            if self._fresh:
                self._begin(name, module, args, kwargs)
            if self.adjoint.detached:
                args, kwargs = without_state_graph(args, kwargs)
            self.modules[name] = module
            if id(module) not in self._inside:
                self._inside[id(module)] = list(module.modules()), attentions_of(module), dtype_of(module)
            inside, attentions, dtype = self._inside[id(module)]
            refuse_hooks(
                name,
                inside,
                repeated=self._policy is GraphPolicy.RECOMPUTE,
                kept=self._policy is GraphPolicy.KEEP and self.wanted,
            )
            call = Replay(name, module, args, kwargs, attentions, dtype, self._step, self.stats)
            self._refuse_idle(call.tensors)
            out = self.accounting.execute(_RUNS[self._policy], call, *call.tensors)
            self._check_finite(name, out, call.tensors)
        if (
            self._policy is GraphPolicy.RECOMPUTE and not module.training
        ):  # with dropout it would draw again
            call.made(out)
            self._step.append(call)
        state = next(iter([*args, *kwargs.values()]), None)
        if name not in self._whole and isinstance(state, Tensor) and state.requires_grad and self.wanted:
            refuse_blind(name, out, state)
            self._whole.add(name)
        nodes = [t.grad_fn for t in tree_leaves(out) if isinstance(t, Tensor) and t.grad_fn is not None]
        if nodes:
            self.nodes[f"evaluation {len(self.nodes)} of {name}"] = nodes
        return out

    def _refuse_idle(self, given: list[Tensor]) -> None:
        if self.wanted and not self._asked and not any(tensor.requires_grad for tensor in given):
            raise InputError(
                "neither an argument nor a weight of the pipeline requires a gradient, nor what its denoiser is first "
                "given; call latents.requires_grad_(), prompt_embeds.requires_grad_() or pipe.unet.requires_grad_()"
            )
        self._asked = True

    def _begin(self, name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        i = self.accounting.call
        self._fresh, self.watch.finished, self._step = False, False, []
        if i == 0:
            self._announced = _announced(self.pipe())
        self._total = max(self._announced, i + 1)
        self._policy = GraphPolicy.KEEP
        state = next(iter([*args, *kwargs.values()]), None)
        if i == 0 and isinstance(state, Tensor):
            self.adjoint = self.adjoint.drawn(state, self._total)
        if self.wanted:
            self._policy = self.adjoint.policy(i, self._total, self.accounting.graph)
        cut = self._policy is GraphPolicy.NO_GRAPH or (self.adjoint.detached and self.wanted)
        if i == 0 and cut and isinstance(state, Tensor) and state.requires_grad:
            raise InputError(
                f"{self.adjoint!r} makes no gradient through the first of {self._total} steps, so it has none "
                f"for the noise or image that {name} starts from; use Checkpointed(), or pass it without "
                "requires_grad"
            )
        self.accounting.begin(self._policy)

    def _check_finite(self, name: str, out: Any, given: list[Tensor]) -> None:
        first = next(t for t in tree_leaves(out) if isinstance(t, Tensor))
        if not bool(torch.isfinite(first).all()):
            fine = all(bool(torch.isfinite(tensor).all()) for tensor in given)
            raise NonFiniteError(
                f"{name} returned NaN or infinity at step {self.accounting.call - 1} of {self._total}; its input was "
                f"{'finite' if fine else 'not finite either'}. Look at its weights and dtype (float16 overflows "
                "above 65504), or lower the guidance scale"
            )

    def stepped(self) -> None:
        self._fresh = True
        self.watch.finished = self.accounting.call >= self._total

    def decode(self, name: str, module: Any, latents: Tensor, *args: Any, **kwargs: Any) -> Any:
        self.watch.finished = True
        own = dtype_of(module)
        if own and latents.is_floating_point() and not torch.is_autocast_enabled(latents.device.type):
            latents = latents.to(own)  # states may be float32 where weights are bfloat16

        def by_blocks(latents: Tensor, run: Run) -> Any:
            with in_blocks(module, run):
                return module.decode(latents, *args, **kwargs)

        if not self.wanted:
            return by_blocks(latents, direct)
        self.modules[name] = module
        return self.adjoint.decode(by_blocks, latents, list(module.parameters()), self.stats)

    def check(self) -> None:
        """Raise unless the denoisers ran, for as many steps as the policies were chosen for.

        Raises:
            InputError: no denoiser was called; or the pipeline took another number of steps than it announced, and the
                adjoint chooses calls by their number.
        """
        calls = self.accounting.call
        if calls == 0:
            raise InputError(
                "the pipeline has not called a denoiser at all, so nothing of it was differentiated"
            )
        if isinstance(self.adjoint, Truncated | DetachedCalls) and calls != self._announced:
            raise InputError(
                f"the pipeline announced {self._announced} steps and took {calls}, so {self.adjoint!r} would "
                "differentiate others than it should; use Checkpointed() with this pipeline"
            )


def _announced(pipe: Any) -> int:
    """The number of steps that the pipeline or its scheduler announces; 1 if neither does."""
    if "_num_timesteps" in vars(pipe):
        return pipe._num_timesteps
    schedulers = [part for part in vars(pipe).values() if hasattr(part, "set_timesteps")]
    times = getattr(schedulers[0], "timesteps", None) if schedulers else None
    return 1 if times is None else len(times)
