"""Whether what a denoiser is given has an influence on what it returns, read from the graphs of its calls.

A tensor that no call depends on gets a gradient of None or zero, and a state that a call does not depend on falsifies
every gradient that passes through it. Neither is seen from outside. So the first calls that have a graph are looked
at, until each tensor in question has been found in one: as a rule that is the first call alone.
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

from .._types import InputError, Run

__all__ = ["Influence", "Operators", "compiled", "reached", "underivable"]

_STATE = object()  # the name of x among tensors
_EIGHT_BITS = (torch.int8, torch.uint8, torch.quint8, torch.qint8)
_LOST = (
    " an operator without a derivative, as int8 and other quantized layers have, so the gradient through it would be "
    "lost without a sign; load the network without quantization, or give the operator a derivative"
)
# In the names of what makes a new tensor, or stops a gradient on purpose.
_NEW = ("_like", "new_", "detach", "data", "__get__", "__set__", "empty", "zeros", "ones", "full")
# These read no more of their second tensor than its dtype, device or shape.
_LIKE_ANOTHER = (Tensor.to, Tensor.type_as, Tensor.expand_as, Tensor.view_as, Tensor.reshape_as)


class Influence:
    """Looks at the denoiser calls of one sampling.

    Args:
        names: the tensors of the conditioning that require a gradient.
        network: what is called.
    """

    def __init__(self, names: Iterable[str], network: nn.Module) -> None:
        self._missing = set(names)
        self._compiled = compiled(network)
        self._state = False  # whether a call has been seen to depend on its state
        self._looked = False  # whether a call with a graph has been

    @property
    def open(self) -> bool:
        """Whether there is anything left to look for."""
        return not self._state or bool(self._missing)

    def velocity(
        self, velocity: Callable[[Run], Tensor], z: Tensor, cond: Mapping[str, Tensor], run: Run
    ) -> Tensor:
        """`velocity(run)`, looked at.

        Raises:
            InputError: it does not depend on z, or an operator in it has no derivative.
        """
        used: list[Tensor] = []  # what evaluations depend on, of what they were given
        made: list[Tensor] = []
        looked = False

        def looking(fn: Callable[..., Any], *tensors: Any) -> Any:
            def look(*given: Any) -> Any:
                nonlocal looked
                if not self.open or not (torch.is_grad_enabled() or self._looked):
                    return fn(*given)
                looked = self._looked = True
                found, out = self._look(fn, given)
                used.extend(tensors[i] for i in found)
                return out

            out = run(look, *tensors)
            made.append(out)
            return out

        slope = velocity(looking)
        if looked:
            wanted = {name: cond[name] for name in self._missing if cond[name].requires_grad}
            # Behind z lie the earlier calls.
            found = reached(
                [slope, *used], {**wanted, **({_STATE: z} if z.requires_grad else {})}, until=[*made, z]
            )
            self._missing -= found
            self._state |= _STATE in found
            if z.requires_grad and not self._state:
                raise InputError(
                    "the denoiser's output does not depend on its input x (a detach, a no_grad or numpy inside it cuts "
                    "the graph), so every gradient through it would be wrong; make it of differentiable operations"
                )
        return slope

    def _look(self, fn: Callable[..., Any], given: tuple[Any, ...]) -> tuple[list[int], Any]:
        """Which of the tensors given have an influence on fn(*given), and that."""
        asked = {i: t for i, t in enumerate(given) if isinstance(t, Tensor) and t.requires_grad}
        if torch.is_grad_enabled():
            with nullcontext() if self._compiled else Operators():
                out = fn(*given)
            return list(reached([out], asked)), out
        # A call whose graph is made in the backward pass alone: it is made here, too, since something is missing.
        copies = [t.detach().requires_grad_() if i in asked else t for i, t in enumerate(given)]
        with torch.enable_grad():
            out = fn(*copies)
        return list(reached([out], {i: copies[i] for i in asked})), out.detach()

    def check(self) -> None:
        """That each tensor has been found; nothing is looked for any more, as in the backward pass.

        Raises:
            InputError: no call depends on one of them.
        """
        if self._looked and self._missing:
            names = ", ".join(f"cond[{name!r}]" for name in sorted(self._missing))
            raise InputError(
                f"no denoiser call depends on {names}, so there is no gradient for it: it is not used together with "
                "the rest of this conditioning (a guidance scale acts beside negative embeddings alone), or the "
                "network detaches it. Leave it out, or pass it without requires_grad"
            )
        self._state, self._missing = True, set()


def compiled(network: nn.Module) -> bool:
    """Whether a network, or a part of it, is compiled: a compiler would take `Operators` for a part of it, too."""
    return any(
        hasattr(each, "_orig_mod") or each._compiled_call_impl is not None for each in network.modules()
    )


def reached(outputs: Iterable[Any], wanted: Mapping[Any, Tensor], until: Iterable[Tensor] = ()) -> set[Any]:
    """The names of those tensors that outputs depend on, by their graph.

    Args:
        outputs: tensors; those without a graph are passed over.
        wanted: tensors that require a gradient, by name.
        until: tensors whose own graphs are not looked into.
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
    """Finds operators that have no derivative, as those of quantized layers, where a graph is made.

    Around them (a residual connection, a second path) the graph goes on, so that the gradient would be wrong without
    a sign.

    `looked` says whether anything was computed with a graph.

    Raises:
        InputError: there is one; it is named, with the module it is called in.
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
    """Whether an operator has used a tensor that requires a gradient and gives it none."""
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
    """Whether a node of a graph has no backward pass: an operator of C++ without one, or one of `custom_op`."""
    name = "" if node is None else node.name()
    if name.startswith("GeneratedBackwardFor_"):
        return any(
            name.startswith(f"GeneratedBackwardFor_{known.replace('::', '_')}_")
            and each._backward_fn is None
            for known, each in OPDEFS.items()
        )
    return "NotImplemented" in name


def _caller() -> str:
    """The module that runs, by its path from the outermost one."""
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
