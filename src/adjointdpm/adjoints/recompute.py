"""Evaluations that are made now for their value, and again for their graph in the backward pass.

Two methods lead to the same gradient:

    recomputed      torch.utils.checkpoint, non-reentrant. It is right under DDP, FSDP2, autocast and dropout, and for
                    whatever the evaluation depends on. It puts a Python hook on every tensor that the graph saves, both
                    times, which takes a third of the time of a small network on a CPU.
    Recomputation   one autograd node for each evaluation. The node's backward makes the graph, computes the products
                    and frees the graph, without hooks. It knows only the tensors that are passed to it, so it checks
                    that the evaluation depends on no others.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import (
    checkpoint,
    get_device_states,
    set_checkpoint_early_stop,
    set_device_states,
)

from .._types import InputError, RecomputationError
from .saved_bytes import SavedBytes, Taken, addresses

__all__ = [
    "Blocks",
    "Graph",
    "Recomputation",
    "autocast_now",
    "entered",
    "kept",
    "recomputed",
    "without_graph",
]


def without_graph(fn: Callable[..., Any], *tensors: Any) -> Any:
    """Return fn(*tensors) without a graph."""
    with torch.no_grad():
        return fn(*tensors)


def recomputed(fn: Callable[..., Any], *tensors: Any) -> Any:
    """Evaluate a function now for its value, and again for its graph in the backward pass.

    The second evaluation runs to its end, although the graph needs less, so that both results can be compared.

    Args:
        fn: the function.
        *tensors: its arguments.

    Returns:
        fn(*tensors).
    """
    with set_checkpoint_early_stop(False):
        return checkpoint(fn, *tensors, use_reentrant=False)


def kept(fn: Callable[..., Any], *tensors: Any) -> Any:
    """Evaluate a function once, with its graph, in which each argument has a node of its own.

    `Recomputation` has such nodes, too. So the gradients of a tensor that `fn` reads more than once are summed in the
    same order, and the sums have the same bits.

    Args:
        fn: the function.
        *tensors: its arguments.

    Returns:
        fn(*tensors).
    """
    return fn(*map(entered, tensors))


def entered(tensor: Tensor) -> Tensor:
    """A tensor with a node of its own, so that its gradients are summed up there."""
    return tensor.view_as(tensor) if tensor.requires_grad else tensor


class Blocks:
    """Executes a network's blocks so that each is recomputed separately; `largest` is their largest graph, in bytes.

    Args:
        shared: weights, which exist anyway and are not counted.
        limit: the most bytes that one block's graph may hold.

    Raises:
        BudgetExceededError: in a block whose graph holds more.
    """

    def __init__(self, shared: list[Tensor], limit: float = math.inf) -> None:
        self._shared, self._limit, self.largest = addresses(shared), limit, 0

    def __call__(self, fn: Callable[..., Any], *tensors: Any) -> Any:
        def metered(*tensors: Any) -> Any:
            with SavedBytes(self._shared, self._limit) as inside:
                out = fn(*tensors)
            self.largest = max(self.largest, inside.bytes or 0)
            return out

        return checkpoint(metered, *tensors, use_reentrant=False)


class Recomputation:
    """The recomputed evaluations of one sampling, in one node each where that is right, else by `recomputed`.

    The graph of the first call is made at once, to find out what the calls depend on. `recomputed` is used for sharded
    weights (DTensor), hooks on weights (they would run twice), weights that a call reads twice (their gradients would
    be summed in another order), tensors that are neither arguments nor weights, and a user's own code inside the
    network (it may store tensors of the graph, for a loss of attention maps).

    Args:
        denoiser: the denoiser.

    Raises:
        InputError: in the first call, if something keeps its graph alive, since tensors of a later graph would have no
            gradient; in the backward pass, if a later call depends on a tensor that the first did not.
    """

    def __init__(self, denoiser: nn.Module) -> None:
        self._weights = [weight for weight in denoiser.parameters() if weight.requires_grad]
        self._fast = not any(
            hasattr(weight, "full_tensor") or weight._backward_hooks for weight in self._weights
        ) and not any(map(_has_foreign_code, denoiser.modules()))
        self._first: int | None = None  # the call whose graphs are searched
        self._looks = True  # whether that is the present call
        self._size = 0  # of its graph
        self._asked: dict[int, list[int]] = {}  # which weights the newest backward pass needs

    def begin(self, call: int) -> None:
        """Begin a call; the graphs of the first one are searched."""
        self._looks = self._first in (None, call)
        self._first = call if self._looks else self._first

    @property
    def in_one_node(self) -> bool:
        """Whether the evaluations of this call are made by `node`, and not by `run`."""
        return self._fast and not self._looks

    def node(self, fn: Callable[..., Tensor], tensors: Sequence[Tensor]) -> Callable[[Tensor], Tensor]:
        """Prepare an evaluation in one node, before its value is computed.

        Args:
            fn: computes the value again, with its graph.
            tensors: its arguments.

        Returns:
            a function that takes the value and returns it with the node as its graph.
        """
        call = _Call(fn, tensors, self._asked)

        def joined(value: Tensor) -> Tensor:
            call.value = value
            return _Recompute.apply(call, *tensors, *self._weights)

        return joined

    def run(self, fn: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        """Make an evaluation now for its value, and again for its graph in the backward pass.

        Args:
            fn: the evaluation.
            *tensors: its arguments.

        Returns:
            the value; its graph is one node where that is right.
        """
        if self.in_one_node:
            return self.node(fn, tensors)(without_graph(fn, *tensors))
        if self._fast:
            call, taken = _Call(fn, tensors, self._asked), Taken()
            call.value = self._seen(fn, tensors, taken)
            taken.refuse()
            if self._fast:
                call.size = self._size
                return _Recompute.apply(call, *tensors, *self._weights)
            call.restore()  # and once more, from the same random numbers
        return recomputed(partial(kept, fn), *tensors)

    def _seen(self, fn: Callable[..., Tensor], tensors: Sequence[Tensor], taken: Taken) -> Tensor:
        """The value, after its graph has been made, searched and freed."""
        given = [tensor.detach().requires_grad_(tensor.requires_grad) for tensor in tensors]
        with taken:
            out = kept(fn, *given)
        graph = Graph(out, given)
        distinct = {id(leaf) for leaf in graph.leaves}
        self._size = graph.size - len(distinct & set(map(id, given)))  # less `kept`'s nodes
        again = len(graph.leaves) > len(distinct)
        self._fast = not again and not graph.others(self._weights)
        return out.detach()


class _Call:
    """A function, the number of its arguments, and the random state and autocast in which it is called."""

    def __init__(
        self, fn: Callable[..., Tensor], tensors: Sequence[Tensor], asked: dict[int, list[int]]
    ) -> None:
        self.fn, self.count, self._asked = fn, len(tensors), asked
        self.devices, self.states = get_device_states(*tensors)
        self.kind = next((t.device.type for t in tensors if t.device.type != "cpu"), "cpu")
        self.state, self.autocast = torch.get_rng_state(), autocast_now(self.kind)
        self.value: Any = None  # the result, until it is in the graph
        self.size: int | None = None  # of its graph, where that was looked at

    def wanted(self, nodes: Sequence[Any]) -> list[int]:
        """The positions of the inputs whose gradients the current backward pass needs; of weights determined once."""
        task = torch._C._current_graph_task_id()
        if task not in self._asked:
            self._asked.clear()
            self._asked[task] = [i for i, node in enumerate(nodes[self.count :]) if _wanted(node)]
        own = [i for i in range(self.count) if _wanted(nodes[i])]
        return own + [self.count + i for i in self._asked[task]]

    def again(self, tensors: Sequence[Tensor]) -> Tensor:
        """The value with its graph, in the random state and autocast of the first evaluation."""
        kind = "cuda" if self.kind == "cpu" else self.kind  # with no devices it is the CPU's alone
        with (
            torch.random.fork_rng(self.devices, device_type=kind),
            torch.enable_grad(),
            self.autocast(),
        ):
            self.restore()
            return self.fn(*tensors)

    def restore(self) -> None:
        """Set the random state of the first evaluation."""
        torch.set_rng_state(self.state)
        if self.devices:
            set_device_states(self.devices, self.states, device_type=self.kind)


class _Recompute(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: _Call, *tensors: Tensor) -> Tensor:
        ctx.call = call
        ctx.save_for_backward(*tensors)
        value, call.value = call.value, None
        return value

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        call, saved = ctx.call, ctx.saved_tensors
        # Of a higher derivative the saved tensors themselves are part; else only what hangs on them is made.
        higher = torch.is_grad_enabled()
        given = [t if higher else t.detach().requires_grad_(t.requires_grad) for t in saved[: call.count]]
        out = call.again(given)
        tensors = [*given, *saved[call.count :]]
        graph = Graph(out, given)
        if unknown := graph.others(saved[call.count :]):
            shapes = ", ".join(str(tuple(leaf.shape)) for leaf in unknown[:3])
            raise InputError(
                f"a denoiser call depends on {len(unknown)} differentiable tensors (shape {shapes}) that are neither "
                "in the conditioning nor among its parameters, which the first call did not, so their gradient would "
                "be lost: register them as nn.Parameter, or use Backprop()"
            )
        # A cache may give the same value without its graph.
        lost = given[0].requires_grad and not out.requires_grad
        if lost or graph.size != (graph.size if call.size is None else call.size):
            raise RecomputationError(
                f"a denoiser call has a graph of {graph.size} nodes when it is made again in the backward pass, "
                f"and had {call.size or 'more'}: it answers from something that it has kept; use adjoint=Backprop()"
            )
        if not out.requires_grad:  # of a prompt that this call does not read, and of no state
            return None, *[None] * len(tensors)
        wanted = call.wanted([node for node, _ in ctx.next_functions])
        products = torch.autograd.grad(
            out, [tensors[i] for i in wanted], cotangent, allow_unused=True, create_graph=higher
        )
        result: list[Tensor | None] = [None] * len(tensors)
        for i, product in zip(wanted, products, strict=True):
            result[i] = product
        return None, *result


def _has_foreign_code(module: nn.Module) -> bool:
    """Whether a user's code runs inside a module: a hook, a replaced method, or a foreign attention processor."""
    processor = getattr(module, "processor", None)
    stock = processor is None or type(processor).__module__.startswith("diffusers.")
    compiled = hasattr(module, "_orig_mod")  # torch.compile's wrapper has a forward of its own
    hooked = module._forward_hooks or module._forward_pre_hooks
    return bool(hooked) or not stock or ("forward" in vars(module) and not compiled)


def _wanted(node: Any) -> bool:
    """Whether the current backward pass will execute this node."""
    runs = getattr(torch._C, "_will_engine_execute_node", None)
    if node is None or runs is None:
        return node is not None
    try:
        return runs(node)
    except RuntimeError:  # it does not say so of a leaf that torch.autograd.grad was asked for
        return True


class Graph:
    """The graph of a result, down to some tensors.

    `leaves` are the leaf tensors in which it ends, each as often as it is read. `size` is the number of its operations
    and of its distinct leaves.

    Args:
        out: the result.
        until: tensors whose own graphs are not searched.
    """

    def __init__(self, out: Tensor, until: Sequence[Tensor]) -> None:
        self._until = until
        self.leaves: list[Tensor] = []
        before = {tensor.grad_fn for tensor in until if tensor.grad_fn is not None}
        seen: set[Any] = set()
        queue = [out.grad_fn]
        while queue:
            node = queue.pop()
            leaf = getattr(node, "variable", None)
            if leaf is not None:
                self.leaves.append(leaf)
            elif node is not None and node not in seen:
                seen.add(node)
                queue.extend(() if node in before else (parent for parent, _ in node.next_functions))
        self.size = len(seen) + len({id(leaf) for leaf in self.leaves})

    def others(self, known: Sequence[Tensor]) -> list[Tensor]:
        """The leaves that are neither among `known` nor among `until`."""
        names = {id(tensor) for tensor in (*known, *self._until)}
        return list({id(leaf): leaf for leaf in self.leaves if id(leaf) not in names}.values())


def autocast_now(device: str) -> Callable[[], torch.autocast]:
    """Make a function that enters the present autocast again, in a backward pass, which runs outside of it."""
    return partial(
        torch.autocast,
        device,
        dtype=torch.get_autocast_dtype(device),
        enabled=torch.is_autocast_enabled(device),
        cache_enabled=torch.is_autocast_cache_enabled(),
    )
