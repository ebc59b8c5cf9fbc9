"""What a pipeline's own call takes, read from its signature and source, so that no family is named here.

A pipeline conditions on what its `__call__` assigns from `self.encode_prompt(...)` and also takes as
arguments: those names are the conditioning, in the order in which encode_prompt returns them.
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

__all__ = ["LENGTHS", "Arguments", "arguments_of", "call_names", "guides", "own_call"]

LENGTHS = "_lengths"
"""Ends the name of how many rows of each padded sample count."""


@dataclass(frozen=True)
class Arguments:
    """The arguments of a pipeline's `__call__`.

    names          all of them, in order
    needed         those without a default, besides the prompt
    encoded        what each call of encode_prompt is assigned to, call by call
    conditioning   those of `encoded` that are arguments, too
    lists          those of them that are lists with one tensor a sample, of any length
    guidance       the weight of classifier-free guidance: `true_cfg_scale` where there are two scales
                   (the other is then an embedding of a distilled model); None if there is none
    default        the pipeline's own guidance weight
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
        """Attention masks: integers, which travel with the conditioning and have no gradient."""
        return frozenset(name for name in self.conditioning if "mask" in name)

    @property
    def lengths(self) -> frozenset[str]:
        """The names by which a Cond says how long the samples of a padded list are."""
        return frozenset(name + LENGTHS for name in self.lists)

    @property
    def linear_guidance(self) -> bool:
        """Whether guidance is F_neg + w (F_pos - F_neg) on one batch, so that it may be split in two."""
        return self.guidance == "guidance_scale" and "cfg_normalization" not in self.names


def own_call(kind: type) -> Callable[..., Any]:
    """A pipeline's `__call__` without the decorator that switches gradients off."""
    return inspect.unwrap(kind.__call__)


def call_names(kind: type) -> tuple[str, ...]:
    """The names of the arguments of a pipeline's call, in order."""
    return tuple(name for name in inspect.signature(own_call(kind)).parameters if name != "self")


@cache
def arguments_of(kind: type) -> Arguments:
    """The arguments of a pipeline class.

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
    """Whether a pipeline applies classifier-free guidance of weight w at all."""
    own = getattr(type(pipe), "do_classifier_free_guidance", None)
    if own is None or arguments_of(type(pipe)).guidance != "guidance_scale":
        return w > 1
    asked = copy.copy(pipe)
    asked.__dict__["_guidance_scale"] = w
    return bool(own.fget(asked))


def _targets(kind: type) -> list[tuple[str, ...]]:
    """The names that `__call__` assigns from each `self.encode_prompt(...)`, in order."""
    try:
        source = textwrap.dedent(inspect.getsource(own_call(kind)))
    except OSError as error:
        raise InputError(f"the source of {kind.__name__}.__call__ is needed but not there") from error
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Call):
            continue
        called, target = node.value.func, node.targets[0]
        if isinstance(called, ast.Attribute) and called.attr == "encode_prompt":
            names = target.elts if isinstance(target, ast.Tuple) else [target]
            found.append((node.lineno, tuple(ast.unparse(name) for name in names)))
    return [names for _, names in sorted(found)]
