"""The arguments of a pipeline's own call, read from its signature and source, so that no family is named here.

The conditioning of a pipeline are the variables that its `__call__` assigns from `self.encode_prompt(...)` and that are
also among its arguments, in the order in which encode_prompt returns them.
"""

import ast
import copy
import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from .._types import InputError

__all__ = ["LENGTHS", "Arguments", "arguments_of", "call_names", "default_of", "guides", "own_call"]

LENGTHS = "_lengths"
"""The end of the name under which a Cond holds the number of valid rows of each sample in a padded tensor."""


@dataclass(frozen=True)
class Arguments:
    """The arguments of a pipeline's `__call__`.

    Args:
        names: all arguments, in order.
        needed: those without a default, besides the prompt.
        encoded: the names to which each call of encode_prompt is assigned, call by call.
        conditioning: those of `encoded` that are also arguments.
        lists: those of `conditioning` that are lists with one tensor a sample, of any length.
        guidance: the name of the weight of classifier-free guidance; `true_cfg_scale` where there are two scales (the
            other is then an embedding of a distilled model); None if there is none.
        default: the pipeline's own guidance weight.
    """

    names: tuple[str, ...]
    needed: tuple[str, ...]
    encoded: tuple[tuple[str, ...], ...]
    conditioning: tuple[str, ...]
    lists: frozenset[str]
    guidance: str | None
    default: float

    @property
    def masks(self) -> frozenset[str]:
        """The names of attention masks: integers, which are part of the conditioning and have no gradient."""
        return frozenset(name for name in self.conditioning if "mask" in name)

    @property
    def lengths(self) -> frozenset[str]:
        """The names under which a Cond holds the lengths of the samples of a padded list."""
        return frozenset(name + LENGTHS for name in self.lists)

    @property
    def linear_guidance(self) -> bool:
        """Whether guidance is F_neg + w (F_pos - F_neg) on one batch, so that it can be split into two calls."""
        return self.guidance == "guidance_scale" and "cfg_normalization" not in self.names


def own_call(kind: type) -> Callable[..., Any]:
    """The `__call__` of a pipeline class, without the decorator that disables gradients."""
    return inspect.unwrap(kind.__call__)


def call_names(kind: type) -> tuple[str, ...]:
    """The names of the arguments of a pipeline's call, in order."""
    return tuple(name for name in inspect.signature(own_call(kind)).parameters if name != "self")


def default_of(pipe: Any, name: str) -> Any:
    """The default of an argument of a pipeline's call; None where it has none."""
    known = inspect.signature(own_call(type(pipe))).parameters
    if name in known:
        return known[name].default
    for each in getattr(getattr(pipe, "_blocks", None), "inputs", []):  # Modular Diffusers
        if each.name == name:
            return each.default
    return None


@cache
def arguments_of(kind: type) -> Arguments:
    """Read the arguments of a pipeline class.

    Args:
        kind: the class.

    Returns:
        its arguments.

    Raises:
        InputError: its source cannot be read.
    """
    parameters = dict(inspect.signature(own_call(kind)).parameters)
    parameters.pop("self")
    encoded = tuple(_targets(kind))
    conditioning = tuple(name for names in encoded for name in names if name in parameters)
    guidance = next((name for name in ("true_cfg_scale", "guidance_scale") if name in parameters), None)
    default = parameters[guidance].default if guidance else None
    return Arguments(
        names=call_names(kind),
        needed=tuple(
            name
            for name, each in parameters.items()
            if each.default is each.empty and each.kind is each.POSITIONAL_OR_KEYWORD and name != "prompt"
        ),
        encoded=encoded,
        conditioning=conditioning,
        lists=frozenset(n for n in conditioning if "list" in str(parameters[n].annotation).lower()),
        guidance=guidance,
        default=float(default) if isinstance(default, int | float) else 1.0,
    )


def guides(pipe: Any, w: float) -> bool:
    """Whether a pipeline applies classifier-free guidance at a weight.

    Args:
        pipe: the pipeline.
        w: the weight.

    Returns:
        the pipeline's own decision where it has one, else whether w > 1.
    """
    own = getattr(type(pipe), "do_classifier_free_guidance", None)
    if own is None or arguments_of(type(pipe)).guidance != "guidance_scale":
        return w > 1
    guided = copy.copy(pipe)
    guided.__dict__["_guidance_scale"] = w
    return bool(own.fget(guided))


def _targets(kind: type) -> list[tuple[str, ...]]:
    """The names that `__call__` assigns from each `self.encode_prompt(...)`, in order."""
    try:
        source = textwrap.dedent(inspect.getsource(own_call(kind)))
    except OSError as error:
        raise InputError(f"the source of {kind.__name__}.__call__ is needed, but cannot be read") from error
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Call):
            continue
        called, target = node.value.func, node.targets[0]
        if isinstance(called, ast.Attribute) and called.attr == "encode_prompt":
            names = target.elts if isinstance(target, ast.Tuple) else [target]
            found.append((node.lineno, tuple(ast.unparse(name) for name in names)))
    return [names for _, names in sorted(found)]
