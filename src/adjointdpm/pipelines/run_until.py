"""A pipeline's own call with some of its parts exchanged, up to the point where one of them ends it.

`differentiable` runs the call to its end; a denoiser, the encoding of prompts and the shapes of latents need one result
of it and leave it there. The pipeline itself is never changed: a copy or a proxy of it runs.
"""

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from .call_signature import own_call
from .gradient_proxy import CallHandlers, gradient_proxy, plain_copy

__all__ = ["Stop", "StopAtFirstCall", "run_until", "stop"]


class Stop(Exception):  # noqa: N818, it is no error
    """Ends a pipeline's call with a result.

    Args:
        value: the result.
    """

    def __init__(self, value: Any = None) -> None:
        super().__init__()
        self.value = value


def stop(value: Any = None, *_: Any, **__: Any) -> Any:
    """End a pipeline's call with the first argument as its result.

    Raises:
        Stop: always.
    """
    raise Stop(value)


class StopAtFirstCall:
    """The handlers that end a call at its first denoiser call, or at its decoding."""

    def evaluate(self, name: str, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        stop()

    def decode(self, name: str, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        stop()

    def stepped(self) -> None:
        """Do nothing: no step is taken."""


def run_until(
    pipe: Any,
    exchanged: Callable[[Any], Mapping[str, Any]],
    arguments: Mapping[str, Any],
    handlers: CallHandlers | None = None,
) -> Any:
    """Run a pipeline's call until `Stop` is raised in it.

    Args:
        pipe: the pipeline.
        exchanged: gives the parts to exchange, by name, for the copy or proxy that runs.
        arguments: of the call.
        handlers: receive the calls of denoisers and VAE, see `gradient_proxy`; if None, a plain copy runs, which costs
            less.

    Returns:
        the value that the call was ended with; None if it ended by itself.
    """
    # A fresh object each time, since a call leaves its settings behind on it.
    other = plain_copy(pipe) if handlers is None else gradient_proxy(pipe, handlers)
    vars(other).update(exchanged(other), _progress_bar_config={"disable": True})
    try:
        own_call(type(pipe))(other, **arguments) if handlers is None else other(**arguments)
    except Stop as end:
        return end.value
    return None
