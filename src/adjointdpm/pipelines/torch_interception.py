"""Intercepted torch calls of a pipeline around its denoiser: draws of noise, numbers made tensors, the last clamp.

`Watch` and `Numbers` are function modes of torch (`torch.overrides.TorchFunctionMode`). Each is in force in one thread,
for one call of a pipeline; `Watch` is off inside the denoisers. Nothing is patched.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from .._types import InputError
from ..flow.influence import Operators, compiled

__all__ = ["Draws", "Number", "Numbers", "Watch", "numbered"]

_CLAMPS = (torch.clamp, Tensor.clamp, torch.clip, Tensor.clip)
_DRAWS = (torch.randn, torch.randn_like)
_PIXEL_RANGES = ((0.0, 1.0), (-1.0, 1.0))  # the ranges that pixels are clamped to


class Draws:
    """Standard normal tensors that replace those that a pipeline draws, in order.

    The attribute `shapes` lists the shapes of all draws.

    Args:
        given: the tensors. A draw whose shape is not that of the next tensor is left to the pipeline.
    """

    def __init__(self, given: Sequence[Tensor] = ()) -> None:
        self._given = list(given)
        self.shapes: list[tuple[int, ...]] = []

    @property
    def left(self) -> int:
        """The number of given tensors that were not used."""
        return len(self._given)

    def answer(self, shape: tuple[int, ...]) -> Tensor | None:
        """Return the next tensor if it has a shape.

        Args:
            shape: the shape of the draw.

        Returns:
            the tensor; None if the draw is left to the pipeline.

        Raises:
            InputError: this is the first draw, and its shape is not that of the first tensor.
        """
        self.shapes.append(shape)
        if len(self.shapes) == 1 and self._given and tuple(self._given[0].shape) != shape:
            raise InputError(
                f"the pipeline draws noise of shape {shape} with these arguments, but was given "
                f"{tuple(self._given[0].shape)}; give as many labels or prompts as images, and noise for each"
            )
        if self._given and tuple(self._given[0].shape) == shape:
            return self._given.pop(0)
        return None


class Number(Tensor):
    """A variable in a form from which a pipeline can make tensors.

    torch.full accepts no number that requires a gradient. So this tensor requires none and holds the variable.
    `Numbers`, in place of torch.full, and every other function compute with the variable.
    """

    variable: Tensor

    @classmethod
    def of(cls, variable: Tensor) -> "Number":
        """Wrap a 0-dimensional tensor that requires a gradient."""
        plain = torch.tensor(variable.item(), dtype=variable.dtype, device=variable.device)
        made = plain.as_subclass(cls)
        made.variable = variable
        return made

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        plain, named = tree_map(lambda each: _plain(each), (args, kwargs or {}))
        return func(*plain, **named)


class Numbers(TorchFunctionMode):
    """Keeps the gradient of numbers that are variables where a pipeline makes tensors of them.

    Distilled models take their guidance scale as an input: `torch.full([1], scale)`, or `torch.tensor(scale - 1)`.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        made = _variable(func, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {})) if made is None else made


def numbered(arguments: Mapping[Any, Any]) -> dict[Any, Any]:
    """The arguments of a call, with each 0-dimensional tensor that requires a gradient wrapped in `Number`."""
    return {
        name: Number.of(each)
        if isinstance(each, Tensor) and each.ndim == 0 and each.requires_grad
        else each
        for name, each in arguments.items()
    }


class Watch(TorchFunctionMode):
    """Intercepts the draws, the numbers and the last clamp of a pipeline while it runs.

    The attribute `finished` is set after the last step; only then is a clamp that of finished pixels.

    Args:
        clamps: whether the clamp of finished pixels is applied, and the clamped share counted; if not, it is skipped.
        draws: the noise that replaces the pipeline's draws.
    """

    def __init__(self, clamps: bool = True, draws: Draws | None = None) -> None:
        super().__init__()
        self.clamps, self.draws = clamps, draws
        self.finished = False
        self._looked: set[str] = set()
        self._cut: dict[tuple[float, float], list[int]] = {bounds: [0, 0] for bounds in _PIXEL_RANGES}

    @property
    def clamped(self) -> float:
        """The share of pixels that a clamp changed, which therefore have no gradient."""
        return max(cut / max(of, 1) for cut, of in self._cut.values())

    @contextmanager
    def paused(self, name: str, network: nn.Module) -> Iterator[None]:
        """A context that ends the interception for one call of a denoiser, which runs at its own speed.

        In each denoiser's first call with a graph, operators without a derivative are refused.

        Args:
            name: the denoiser's name.
            network: the denoiser.

        Yields:
            nothing.
        """
        operators = Operators()
        self.__exit__(None, None, None)
        try:
            with nullcontext() if name in self._looked or compiled(network) else operators:
                yield
        finally:
            self.__enter__()
        if operators.looked:
            self._looked.add(name)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.draws is not None and func in _DRAWS:
            return self._drawn(self.draws, func, args, kwargs)
        if self.finished and func in _CLAMPS and (bounds := _bounds(*args[1:], **kwargs)) in _PIXEL_RANGES:
            return self._cutting(bounds, func, args, kwargs)
        made = _variable(func, *args, **kwargs)
        return func(*args, **kwargs) if made is None else made

    def _cutting(self, bounds: tuple[float, float], func: Any, args: Any, kwargs: Any) -> Tensor:
        pixels = args[0]
        if not self.clamps:
            return pixels
        self._cut[bounds][0] += int(((pixels < bounds[0]) | (pixels > bounds[1])).sum())
        self._cut[bounds][1] += pixels.numel()
        return func(*args, **kwargs)

    def _drawn(self, draws: Draws, func: Any, args: Any, kwargs: Any) -> Tensor:
        own = func(*args, **kwargs)  # drawn in any case, so that the generator advances as usual
        given = draws.answer(tuple(own.shape))
        if given is None:
            return own
        if not given.is_floating_point():
            raise InputError(f"noise must be floating point, but is {given.dtype}")
        return given.to(own.device)  # in its own dtype, which becomes that of the states


def _bounds(min: Any = None, max: Any = None, **_: Any) -> tuple[float, float] | None:  # noqa: A002
    numbers = isinstance(min, int | float) and isinstance(max, int | float)
    return (float(min), float(max)) if numbers else None


def _plain(each: Any) -> Any:
    return vars(each)["variable"] if type(each) is Number else each


def _variable(func: Any, *args: Any, dtype: Any = None, device: Any = None, **_: Any) -> Tensor | None:
    """The result of torch.full or torch.tensor for a variable, with its gradient; None for anything else."""
    if func not in (torch.full, torch.tensor) or not isinstance(args[-1], Tensor):
        return None
    value = _plain(args[-1])
    if not value.requires_grad:
        return None
    made = value.to(dtype=dtype or value.dtype, device=device or value.device)
    return made.expand(tuple(args[0])) if func is torch.full else made
