"""A pipeline's own code with gradients enabled, while the pipeline itself is not changed.

A proxy is a second object with the attributes of a first one, of a subclass that is made when it is needed:

    pipeline    its attributes are copied; gradients are enabled in methods that disable them (`no_grad`); models that
                it moves between devices for a call stay where they are at the end of the call
    scheduler   its attributes and lists are copied, so that no graph outlives the run in it; each step is reported
    guider      as the scheduler, without the report (Modular Diffusers)
    blocks      as the guider, nested blocks included (Modular Diffusers)
    denoiser    *the same* attributes, one dictionary of two objects; a call of it goes to a handler
    VAE         as the denoiser; a call of its `decode` goes to a handler
    tokenizer   as the denoiser; a call of it warns if a part of a prompt is lost
    encoder     as the denoiser; a text encoder on another device is called there (see `text_device`)

A denoiser is a network that takes the time: its `forward` has a parameter of that name. Nothing is patched, so nothing
has to be restored, even after errors, in nested calls and in other threads.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from .call_signature import own_call
from .text_device import called_there, encoders_apart, own_device
from .token_embeddings import read_whole, tokenizers

__all__ = ["CallHandlers", "denoisers", "gradient_proxy", "parts", "plain_copy", "routed", "undecorated"]

_DECORATED = torch.enable_grad()(lambda: None).__code__  # shared by no_grad, inference_mode and the like


@runtime_checkable
class CallHandlers(Protocol):
    """The handlers that receive the calls of a proxy's parts."""

    def evaluate(self, name: str, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Handle a call of a denoiser.

        Args:
            name: its name in the pipeline.
            module: the denoiser itself.
            *args: the call's positional arguments.
            **kwargs: the call's keyword arguments.

        Returns:
            the result of the call.
        """

    def decode(self, name: str, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Handle a call of a VAE's `decode`.

        Args:
            name: its name in the pipeline.
            module: the VAE itself.
            *args: the call's positional arguments.
            **kwargs: the call's keyword arguments.

        Returns:
            the result of the call.
        """

    def stepped(self) -> None:
        """Called after a scheduler has taken a step."""


def gradient_proxy(pipe: Any, handlers: CallHandlers) -> Any:
    """Make the proxy of a pipeline.

    Args:
        pipe: the pipeline.
        handlers: receive the calls of its denoisers, VAE and scheduler.

    Returns:
        the proxy, which is called as the pipeline is.
    """
    made = _made(undecorated(type(pipe)), {k: _part(k, v, handlers) for k, v in vars(pipe).items()})
    for name, tokenizer in tokenizers(pipe).items():
        vars(made)[name] = routed(tokenizer, "__call__", functools.partial(read_whole, pipe, name))
    for name, encoder in encoders_apart(pipe).items():
        vars(made)[name] = routed(
            encoder, "__call__", functools.partial(called_there, encoder, own_device(pipe))
        )
    vars(made).pop("_num_timesteps", None)  # left by an earlier run
    # The method would hook the shared modules again, for the proxy, and move them off the device before the backward
    # pass. A module's own hooks still move it back when it is called again.
    vars(made)["maybe_free_model_hooks"] = lambda: None
    return made


def plain_copy(pipe: Any) -> Any:
    """Return a copy with the same attributes, whose `device` is that of all but the text encoders (`text_device`)."""
    return _made(_beside_text(type(pipe)), dict(vars(pipe)))


def denoisers(pipe: Any) -> dict[str, nn.Module]:
    """The networks of a pipeline, and of its sub-pipelines, that take the time, by name."""
    return {name: part for name, part in parts(pipe) if _takes_time(part)}


def parts(pipe: Any) -> list[tuple[str, Any]]:
    """The attributes of a pipeline, and those of the pipelines among them, by name."""
    found = []
    for name, part in vars(pipe).items():
        found += [(f"{name}.{k}", v) for k, v in parts(part)] if _is_pipeline(part) else [(name, part)]
    return found


def _part(name: str, part: Any, handlers: CallHandlers) -> Any:
    if _takes_time(part):
        return routed(part, "__call__", functools.partial(handlers.evaluate, name, part))
    if _decodes(part):
        return routed(part, "decode", functools.partial(handlers.decode, name, part))
    if _is_pipeline(part):
        return gradient_proxy(part, handlers)
    if hasattr(part, "sub_blocks"):
        return _blocks(part)
    if hasattr(part, "set_timesteps") and hasattr(part, "step"):
        made = _made(_stepping(type(part)), _fresh(part))
        object.__setattr__(made, "_stepped", handlers.stepped)
        return made
    if hasattr(part, "prepare_inputs") and hasattr(part, "set_state"):
        return _made(type(part), _fresh(part))
    return part


def _takes_time(part: Any) -> bool:
    if not isinstance(part, nn.Module):
        return False
    plain = getattr(part, "_orig_mod", part)  # torch.compile's wrapper takes anything
    names = inspect.signature(type(plain).forward).parameters
    return any("time" in name or name == "t" for name in names)


def _decodes(part: Any) -> bool:
    return isinstance(part, nn.Module) and callable(getattr(part, "decode", None))


def _is_pipeline(part: Any) -> bool:
    from diffusers import DiffusionPipeline  # takes seconds to import; here it already is imported

    return isinstance(part, DiffusionPipeline)


def _made(kind: type, attributes: dict[str, Any]) -> Any:
    made = object.__new__(kind)
    object.__setattr__(made, "__dict__", attributes)
    return made


def _fresh(part: Any) -> dict[str, Any]:
    """Attributes whose lists, dictionaries and sets are copies, so that changes do not reach the original."""
    return {k: v.copy() if type(v) in (list, dict, set) else v for k, v in vars(part).items()}


def _blocks(block: Any) -> Any:
    attributes = _fresh(block)
    attributes["sub_blocks"] = type(block.sub_blocks)()
    for name, inner in block.sub_blocks.items():
        attributes["sub_blocks"][name] = _blocks(inner)
    return _made(undecorated(type(block), enabling=True), attributes)


def routed(module: Any, method: str, route: Callable[..., Any]) -> Any:
    """Return a second object over a module's attributes, whose method calls a function instead."""
    made = _made(_routing(type(module), method), vars(module))
    object.__setattr__(made, "_route", route)
    return made


@functools.cache
def _routing(kind: type, method: str) -> type:
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self._route(*args, **kwargs)

    # The route is in a slot, since the dictionary is shared with the original.
    return _subclass(kind, {"__slots__": ("_route",), method: call})


@functools.cache
def _stepping(kind: Any) -> type:
    plain = inspect.unwrap(kind.step)

    @functools.wraps(plain)  # pipelines inspect the signature
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        out = plain(self, *args, **kwargs)
        self._stepped()
        return out

    return _subclass(kind, {"__slots__": ("_stepped",), "step": step})


@functools.cache
def undecorated(kind: Any, enabling: bool = False) -> Any:
    """A subclass that enables gradients in every method that disables them, and leaves them alone in `__call__`.

    Args:
        kind: the class.
        enabling: whether `__call__` enables them, too.

    Returns:
        the subclass.
    """
    methods = {
        name: torch.enable_grad()(inspect.unwrap(method))
        for name, method in inspect.getmembers(kind, inspect.isfunction)
        if _switches(method)
    }
    if enabling:
        return _subclass(kind, methods)
    return _subclass(_beside_text(kind), {**methods, "__call__": own_call(kind)})


@functools.cache
def _beside_text(kind: Any) -> Any:
    return _subclass(kind, {"device": property(own_device)})


def _switches(method: Any) -> bool:
    while method is not None:
        if getattr(method, "__code__", None) is _DECORATED:
            return True
        method = getattr(method, "__wrapped__", None)
    return False


def _subclass(kind: type, attributes: dict[str, Any]) -> type:
    return type(kind.__name__, (kind,), {"__module__": kind.__module__, **attributes})
