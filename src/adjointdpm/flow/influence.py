"""Whether a denoiser's output depends on its inputs, read from the graphs of its calls.

A tensor that no call depends on receives a gradient of None or zero. A call that does not depend on its state makes
every gradient that passes through it wrong. Neither is visible from outside. So this module searches the graphs of the
first calls until it has found each tensor in one of them; as a rule the first call is enough.
"""

import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch._library.custom_ops import OPDEFS
from torch.autograd.graph import get_gradient_edge
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._pytree import tree_leaves

from .._types import Cond, InputError, Run, Time
from .probability_flow import ProbabilityFlow

__all__ = ["Influence", "Operators", "compiled", "reached", "underivable"]

_STATE = object()  # the name of the state among tensors
_EIGHT_BITS = (torch.int8, torch.uint8, torch.quint8, torch.qint8)
_LOST = (
    " an operator without a derivative, as int8 and other quantized layers have, so the gradient through it would be "
    "lost without a warning; load the network without quantization, or give the operator a derivative"
)
# Parts of the names of operators that make a new tensor or stop a gradient on purpose.
_NEW = ("_like", "new_", "detach", "data", "__get__", "__set__", "empty", "zeros", "ones", "full")
# These read no more of their second tensor than its dtype, device or shape.
_LIKE_ANOTHER = (Tensor.to, Tensor.type_as, Tensor.expand_as, Tensor.view_as, Tensor.reshape_as)


class Influence:
    """Checks that the denoiser calls of one sampling depend on the state and the conditioning.

    Args:
        names: the names of the tensors in the conditioning that require a gradient.
        network: the network that is called.
    """

    def __init__(self, names: Iterable[str], network: nn.Module) -> None:
        self._missing = set(names)
        self._compiled = compiled(network)
        self._state = False  # whether some call depends on its state
        self._looked = False  # whether some call with a graph has been searched
        # Of the newest call: the tensors that its evaluations depend on, their results, whether one was searched.
        self._used: list[Tensor] = []
        self._made: list[Any] = []
        self._searched = False

    @property
    def open(self) -> bool:
        """Whether a tensor is still to be found."""
        return not self._state or bool(self._missing)

    def leave_state_out(self) -> None:
        """Search for the conditioning alone, since no gradient passes through the states of this sampling."""
        self._state = True

    def velocity(self, flow: ProbabilityFlow, z: Tensor, time: Time, cond: Cond) -> Tensor:
        """Evaluate the flow's velocity, and search its graph.

        Args:
            flow: the flow; its denoiser passes each evaluation to `evaluate`.
            z: the state, (batch, *shape).
            time: the instant.
            cond: the conditioning.

        Returns:
            the velocity, (batch, *shape).

        Raises:
            InputError: it does not depend on z, or an operator in it has no derivative.
        """
        self._searched = False
        try:
            slope = flow.velocity(z, time, cond)
        finally:  # kept longer, they would keep the graph
            made, self._made = self._made, []
            used, self._used = self._used, []
        if self._searched:
            inputs = {name: cond[name] for name in self._missing if cond[name].requires_grad}
            # The graph of z is that of the earlier calls.
            found = reached(
                [slope, *used],
                {**inputs, **({_STATE: z} if z.requires_grad else {})},
                until=[*made, z],
            )
            self._missing -= found
            self._state |= _STATE in found
            if z.requires_grad and not self._state:
                raise InputError(
                    "the denoiser's output does not depend on its input x (a detach, a no_grad or numpy inside it cuts "
                    "the graph), so every gradient through it would be wrong; use differentiable operations alone"
                )
        return slope

    def evaluate(self, run: Run, fn: Callable[..., Any], *tensors: Tensor) -> Any:
        """Make one evaluation of the denoiser, and search its graph.

        Args:
            run: executes the evaluation.
            fn: the evaluation.
            *tensors: its arguments.

        Returns:
            the result of run(fn, *tensors).
        """
        used = self._used

        def look(*given: Any) -> Any:
            if not self.open or not (torch.is_grad_enabled() or self._looked):
                return fn(*given)
            self._looked = self._searched = True
            found, out = self._look(fn, given)
            used.extend(tensors[i] for i in found)
            return out

        out = run(look, *tensors)
        self._made.append(out)
        return out

    def _look(self, fn: Callable[..., Any], given: tuple[Any, ...]) -> tuple[list[int], Any]:
        """The numbers of the tensors that fn(*given) depends on, and its result."""
        inputs = {i: t for i, t in enumerate(given) if isinstance(t, Tensor) and t.requires_grad}
        if torch.is_grad_enabled():
            with nullcontext() if self._compiled else Operators():
                out = fn(*given)
            return list(reached([out], inputs)), out
        # The graph of this call is made in the backward pass alone; it is made here too, to be searched.
        copies = [t.detach().requires_grad_() if i in inputs else t for i, t in enumerate(given)]
        with torch.enable_grad():
            out = fn(*copies)
        return list(reached([out], {i: copies[i] for i in inputs})), out.detach()

    def check(self) -> None:
        """Raise if some tensor has not been found, and end the search.

        Raises:
            InputError: no call depends on one of the tensors.
        """
        if self._looked and self._missing:
            names = ", ".join(f"cond[{name!r}]" for name in sorted(self._missing))
            raise InputError(
                f"no denoiser call depends on {names}, so there is no gradient for it: it is not used together with "
                "the rest of this conditioning (a guidance scale needs negative embeddings), or the "
                "network detaches it. Leave it out, or pass it without requires_grad"
            )
        self._state, self._missing = True, set()


def compiled(network: nn.Module) -> bool:
    """Whether a network or one of its modules is compiled; a compiler would trace `Operators` as well."""
    return any(
        hasattr(each, "_orig_mod") or each._compiled_call_impl is not None for each in network.modules()
    )


def reached(outputs: Iterable[Any], wanted: Mapping[Any, Tensor], until: Iterable[Tensor] = ()) -> set[Any]:
    """Find the tensors that outputs depend on, in the graph of the outputs.

    Args:
        outputs: the outputs; those without a graph are skipped.
        wanted: the tensors to find, by name; each requires a gradient.
        until: tensors whose own graphs are not searched.

    Returns:
        the names of the tensors that were found.

    Raises:
        InputError: an operator on the way has no derivative.
    """
    names: dict[Any, set[Any]] = {}
    for name, tensor in wanted.items():
        names.setdefault(get_gradient_edge(tensor).node, set()).add(name)
    ends = {tensor.grad_fn for tensor in until if isinstance(tensor, Tensor)}
    leaves = [t for t in tree_leaves(list(outputs)) if isinstance(t, Tensor) and t.requires_grad]
    queue: list[Any] = [get_gradient_edge(tensor).node for tensor in leaves]
    seen: set[Any] = set()
    found: set[Any] = set()
    while queue:
        node = queue.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        found |= names.get(node, set())
        if underivable(node):
            raise InputError(f"the denoiser computes with{_LOST}")
        if node not in ends:
            queue.extend(parent for parent, _ in node.next_functions)
    return found


class Operators(TorchFunctionMode):
    """Refuses operators that have no derivative, such as those of quantized layers, where a graph is made.

    The graph goes around such an operator (by a residual connection or a second path), so the gradient would be wrong
    without a warning. `looked` says whether anything was computed with a graph.

    Raises:
        InputError: an operator has no derivative; the message names it and the module that calls it.
    """

    looked = False

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and torch.is_grad_enabled():
            self.looked |= out.requires_grad
            if _lost(func, out, args):
                raise InputError(f"{_caller()} computes with {resolve_name(func) or func}:{_LOST}")
        return out


def _lost(func: Callable[..., Any], out: Tensor, args: tuple[Any, ...]) -> bool:
    """Whether an operator used a tensor that requires a gradient and gives it none."""
    if out.requires_grad:
        return underivable(out.grad_fn)
    if not (out.is_floating_point() or out.dtype in _EIGHT_BITS):
        return False
    args = args[:1] if func in _LIKE_ANOTHER else args
    if not any(isinstance(each, Tensor) and each.requires_grad for each in args):
        return False
    name = resolve_name(func) or str(func)
    return not any(part in name for part in _NEW)


def underivable(node: Any) -> bool:
    """Whether a node of a graph has no backward pass: a C++ operator or a `custom_op` without one."""
    name = "" if node is None else node.name()
    if name.startswith("GeneratedBackwardFor_"):
        return any(
            name.startswith(f"GeneratedBackwardFor_{known.replace('::', '_')}_")
            and each._backward_fn is None
            for known, each in OPDEFS.items()
        )
    return "NotImplemented" in name


def _caller() -> str:
    """The module that is running, by its path from the outermost one."""
    modules: list[nn.Module] = []
    frame = sys._getframe(2)
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, nn.Module) and owner not in modules:
            modules.append(owner)
        frame = frame.f_back
    if not modules:
        return "the denoiser"
    path = next((name for name, each in modules[-1].named_modules() if each is modules[0]), "")
    return f"{path or 'the denoiser'} ({type(modules[0]).__name__})"
