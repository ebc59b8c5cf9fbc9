"""A pipeline's own code with its gradients on, while the pipeline itself stays as it is.

A twin is a second object over a first one's attributes, of a subclass made on the spot:

    pipeline    its attributes copied; methods that switch gradients off (`no_grad`) have them on; models
                that it moves from device to device for a call are left where they are at its end
    scheduler   its attributes and lists copied, so that no graph outlives the run in it; says when it steps
    guider      likewise (Modular Diffusers)
    blocks      likewise, down to the last one (Modular Diffusers)
    denoiser    *the same* attributes, one dictionary under two objects; a call of it is routed
    VAE         likewise; its `decode` is routed
    tokenizer   likewise; a call of it says what of a prompt is lost

A denoiser is a network that is told the time: its `forward` takes a parameter of that name. Since nothing
is patched, nothing has to be put back, whatever is raised, nested or done in another thread.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from .call_signature import own_call
from .token_embeddings import read_whole, tokenizers

__all__ = ["CallHandlers", "denoisers", "gradient_proxy", "parts", "undecorated"]

_DECORATED = torch.enable_grad()(lambda: None).__code__  # shared by no_grad, inference_mode and their kin


@runtime_checkable
class CallHandlers(Protocol):
    """Where the calls of a twin's parts go."""

    def evaluate(self, name: str, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """A call of the denoiser that the pipeline knows under `name`."""

    def decode(self, name: str, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """A call of `decode` of the VAE that the pipeline knows under `name`."""

    def stepped(self) -> None:
        """A scheduler has taken a step."""


def gradient_proxy(pipe: Any, handlers: CallHandlers) -> Any:
    """The twin of a pipeline, whose denoisers, VAE and scheduler answer through `routes`."""
    made = _made(undecorated(type(pipe)), {k: _part(k, v, handlers) for k, v in vars(pipe).items()})
    for name, tokenizer in tokenizers(pipe).items():
        vars(made)[name] = _routed(tokenizer, "__call__", functools.partial(read_whole, pipe, name))
    vars(made).pop("_num_timesteps", None)  # an earlier run's
    # It would hook the shared modules anew, in the name of the twin, and empty the devices before the
    # backward pass; a module's own hooks still fetch it when it is called again.
    vars(made)["maybe_free_model_hooks"] = lambda: None
    return made


def denoisers(pipe: Any) -> dict[str, nn.Module]:
    """The networks of a pipeline that are told the time, by their names, its sub-pipelines' included."""
    return {name: part for name, part in parts(pipe) if _takes_time(part)}


def parts(pipe: Any) -> list[tuple[str, Any]]:
    """The attributes of a pipeline, and of the pipelines among them, by name."""
    found = []
    for name, part in vars(pipe).items():
        found += [(f"{name}.{k}", v) for k, v in parts(part)] if _is_pipeline(part) else [(name, part)]
    return found


def _part(name: str, part: Any, handlers: CallHandlers) -> Any:
    if _takes_time(part):
        return _routed(part, "__call__", functools.partial(handlers.evaluate, name, part))
    if _decodes(part):
        return _routed(part, "decode", functools.partial(handlers.decode, name, part))
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
    from diffusers import DiffusionPipeline  # seconds to import, and here already done

    return isinstance(part, DiffusionPipeline)


def _made(kind: type, attributes: dict[str, Any]) -> Any:
    made = object.__new__(kind)
    object.__setattr__(made, "__dict__", attributes)
    return made


def _fresh(part: Any) -> dict[str, Any]:
    """Attributes in which what is appended or assigned by index does not reach the original."""
    return {k: v.copy() if type(v) in (list, dict, set) else v for k, v in vars(part).items()}


def _blocks(block: Any) -> Any:
    attributes = _fresh(block)
    attributes["sub_blocks"] = type(block.sub_blocks)()
    for name, inner in block.sub_blocks.items():
        attributes["sub_blocks"][name] = _blocks(inner)
    return _made(undecorated(type(block), enabling=True), attributes)


def _routed(module: Any, method: str, route: Callable[..., Any]) -> Any:
    made = _made(_routing(type(module), method), vars(module))
    object.__setattr__(made, "_route", route)
    return made


@functools.cache
def _routing(kind: type, method: str) -> type:
    def routed(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self._route(*args, **kwargs)

    # A slot, for the dictionary is the original's, too.
    return _subclass(kind, {"__slots__": ("_route",), method: routed})


@functools.cache
def _stepping(kind: Any) -> type:
    plain = inspect.unwrap(kind.step)

    @functools.wraps(plain)  # pipelines look at the signature
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        out = plain(self, *args, **kwargs)
        self._stepped()
        return out

    return _subclass(kind, {"__slots__": ("_stepped",), "step": step})


@functools.cache
def undecorated(kind: Any, enabling: bool = False) -> Any:
    """A subclass in which every method that switches gradients off has them on, and `__call__` leaves them.

    Args:
        enabling: whether `__call__` switches them on, too.
    """
    methods = {
        name: torch.enable_grad()(inspect.unwrap(method))
        for name, method in inspect.getmembers(kind, inspect.isfunction)
        if _switches(method)
    }
    if not enabling:
        methods["__call__"] = own_call(kind)
    return _subclass(kind, methods)


def _switches(method: Any) -> bool:
    while method is not None:
        if getattr(method, "__code__", None) is _DECORATED:
            return True
        method = getattr(method, "__wrapped__", None)
    return False


def _subclass(kind: type, attributes: dict[str, Any]) -> type:
    return type(kind.__name__, (kind,), {"__module__": kind.__module__, **attributes})
