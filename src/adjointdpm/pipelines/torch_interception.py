"""What a pipeline does to tensors around its denoiser: draws of noise, numbers made tensors, the last clamp.

`Watch` and `Numbers` are each a function mode of torch (`torch.overrides.TorchFunctionMode`): in force in one
thread, for one call of a pipeline, and `Watch` not inside its denoisers. Nothing is patched.
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
_PICTURES = ((0.0, 1.0), (-1.0, 1.0))  # the ranges that pixels are cut to


class Draws:
    """Standard normal tensors that a pipeline is given instead of its own, in the order it asks.

    Args:
        given: the tensors; a draw of a shape that is not the next one's is left to the pipeline.
    `shapes` lists what was asked for.
    """

    def __init__(self, given: Sequence[Tensor] = ()) -> None:
        self._given = list(given)
        self.shapes: list[tuple[int, ...]] = []

    @property
    def left(self) -> int:
        """How many of the given tensors were not asked for."""
        return len(self._given)

    def answer(self, shape: tuple[int, ...]) -> Tensor | None:
        """The next tensor if it has this shape.

        Raises:
            InputError: it is the first draw, of another shape than the first tensor.
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
    """A variable in the form in which a pipeline may make tensors of it.

    torch.full takes no number that wants a gradient, so it is shown one that does not; everything else, and
    `Numbers` in place of torch.full, computes with the variable.
    """

    variable: Tensor

    @classmethod
    def of(cls, variable: Tensor) -> "Number":
        shown = torch.tensor(variable.item(), dtype=variable.dtype, device=variable.device)
        made = shown.as_subclass(cls)
        made.variable = variable
        return made

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        plain, named = tree_map(lambda each: _plain(each), (args, kwargs or {}))
        return func(*plain, **named)


class Numbers(TorchFunctionMode):
    """Numbers that are variables stay so where a pipeline makes tensors of them.

    Distilled models are told their guidance scale: `torch.full([1], scale)`, or `torch.tensor(scale - 1)`.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        made = _variable(func, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {})) if made is None else made


def numbered(arguments: Mapping[Any, Any]) -> dict[Any, Any]:
    """A call's arguments, with numbers that are variables in the form for `Numbers` and `Watch`."""
    return {
        name: Number.of(each)
        if isinstance(each, Tensor) and each.ndim == 0 and each.requires_grad
        else each
        for name, each in arguments.items()
    }


class Watch(TorchFunctionMode):
    """Looks on while a pipeline runs.

    Args:
        clamps: whether the last cut of pixels to their range is made, and its share counted; or left out.
        draws: the noise to hand out.
    `finished` is set once the last step is taken: only then is a clamp the cut of finished pixels.
    """

    def __init__(self, clamps: bool = True, draws: Draws | None = None) -> None:
        super().__init__()
        self.clamps, self.draws = clamps, draws
        self.finished = False
        self._looked: set[str] = set()
        self._cut: dict[tuple[float, float], list[int]] = {bounds: [0, 0] for bounds in _PICTURES}

    @property
    def clamped(self) -> float:
        """The share of pixels that a clamp cut, and that therefore have no gradient."""
        return max(cut / max(of, 1) for cut, of in self._cut.values())

    @contextmanager
    def paused(self, name: str, network: nn.Module) -> Iterator[None]:
        """Out of the way: a denoiser runs at its own speed, and its clamps are its own.

        The first call of each with a graph is looked at, for operators that have no derivative.

        Args:
            name, network: the denoiser.
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
        if self.finished and func in _CLAMPS and (bounds := _bounds(*args[1:], **kwargs)) in _PICTURES:
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
        own = func(*args, **kwargs)  # drawn in any case, so that the generator moves on as ever
        given = draws.answer(tuple(own.shape))
        if given is None:
            return own
        if not given.is_floating_point():
            raise InputError(f"noise must be floating point, but is {given.dtype}")
        return given.to(own.device)  # in its own dtype: it decides that of the states


def _bounds(min: Any = None, max: Any = None, **_: Any) -> tuple[float, float] | None:  # noqa: A002
    numbers = isinstance(min, int | float) and isinstance(max, int | float)
    return (float(min), float(max)) if numbers else None


def _plain(each: Any) -> Any:
    return vars(each)["variable"] if type(each) is Number else each


def _variable(func: Any, *args: Any, dtype: Any = None, device: Any = None, **_: Any) -> Tensor | None:
    """What torch.full or torch.tensor makes of a variable, with its gradient; None of anything else."""
    if func not in (torch.full, torch.tensor) or not isinstance(args[-1], Tensor):
        return None
    value = _plain(args[-1])
    if not value.requires_grad:
        return None
    made = value.to(dtype=dtype or value.dtype, device=device or value.device)
    return made.expand(tuple(args[0])) if func is torch.full else made
