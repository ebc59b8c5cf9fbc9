"""A pipeline's own reading of prompts, as tensors under the names that its call takes them by.

`encode_prompt` of a pipeline returns a tuple; which is which stands in its `return` statement.
"""

import ast
import inspect
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ._types import Cond, InputError

__all__ = ["call_names", "encode_prompt"]


def call_names(pipe: Any) -> list[str]:
    """The names of the arguments of a pipeline's call."""
    return [
        name for name in inspect.signature(inspect.unwrap(type(pipe).__call__)).parameters if name != "self"
    ]


def encode_prompt(pipe: Any, prompts: Sequence[str], negative: str, guidance_scale: float) -> Cond:
    """What a pipeline tells its denoiser about prompts; without negative tensors where there is no guidance.

    Raises:
        InputError: the pipeline has no `encode_prompt`, or what it returns cannot be told apart.
    """
    method = getattr(type(pipe), "encode_prompt", None)
    if method is None:
        raise InputError(
            f"{type(pipe).__name__} reads no prompts; give what it takes as PipelineSampler(arguments={{...}}) and "
            "sample with an empty Cond()"
        )
    plain = inspect.unwrap(method)
    guided = guidance_scale > 1
    offered = {
        "prompt": list(prompts),
        "negative_prompt": [negative] * len(prompts) if guided else None,
        "do_classifier_free_guidance": guided,
        "device": pipe._execution_device,
        "num_images_per_prompt": 1,
        "num_videos_per_prompt": 1,
    }
    known = inspect.signature(plain).parameters
    needed = [
        name
        for name, each in known.items()
        if each.default is each.empty and each.kind is not each.VAR_KEYWORD
    ]
    given = {name: value for name, value in offered.items() if name in known}
    given |= {
        name: None for name in needed if name not in given and name != "self"
    }  # prompt_2 and the like
    out = plain(pipe, **given)
    out = out if isinstance(out, tuple) else (out,)
    names = _returned(plain)
    if len(names) != len(out):
        raise InputError(
            f"{type(pipe).__name__}.encode_prompt returns {len(out)} values under the names {names}, which cannot "
            "be told apart; make the Cond yourself, with the names of the pipeline's arguments"
        )
    taken = call_names(pipe)
    found = {k: v for k, v in zip(names, out, strict=True) if isinstance(v, Tensor) and k in taken}
    if not guided:
        found = {k: v for k, v in found.items() if not k.startswith("negative")}
    if not found:
        raise InputError(
            f"{type(pipe).__name__}.encode_prompt returns {', '.join(names)}, none of which is a tensor that its "
            "call takes; use differentiable(pipe)"
        )
    if guided and "guidance_scale" in taken and any(k.startswith("negative") for k in found):
        like = next(iter(found.values()))
        found["guidance_scale"] = torch.tensor(guidance_scale, device=like.device, dtype=like.dtype)
    return Cond(found)


def _returned(method: Callable[..., Any]) -> list[str]:
    """The names in a method's last return statement."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(method)))
    last = [node.value for node in ast.walk(tree) if isinstance(node, ast.Return)][-1:]
    values = last[0].elts if last and isinstance(last[0], ast.Tuple) else last
    return [value.id for value in values if isinstance(value, ast.Name)]
