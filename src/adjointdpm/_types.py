"""Types that all other modules share: a time, a conditioning, a graph policy, the errors and checks of settings.

Time     one instant: the network's t, the solver's tau, and alpha, sigma with x = alpha x0 + sigma eps
Cond     the denoiser's inputs besides (x, t): named tensors, each of which can require a gradient
Run      how one denoiser call is executed: kept, recomputed or without a graph (the adjoint decides)
State    the value that a solver advances: a tuple of tensors, so that the same solvers solve the augmented ODE
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from numbers import Real
from typing import Any, get_type_hints

from jaxtyping import Float64
from torch import Tensor

__all__ = [
    "AdjointDPMError",
    "Cond",
    "Derivative",
    "DriftError",
    "GraphPolicy",
    "InputError",
    "MissingTensorError",
    "NonFiniteError",
    "OneOf",
    "Range",
    "RecomputationError",
    "Run",
    "Scalar",
    "State",
    "Stats",
    "Time",
    "check_settings",
    "direct",
    "in_range",
]

Scalar = Float64[Tensor, ""]
"""A 0-dimensional float64 tensor on the CPU: it multiplies tensors of any dtype and device exactly
as a Python float would, and carries a gradient if the time grid requires one."""

State = tuple[Tensor, ...]

Run = Callable[..., Any]
"""`run(fn, *tensors) -> fn(*tensors)`; every tensor that `fn` differentiates is among `tensors`."""


class AdjointDPMError(Exception):
    """Base class of the errors that this library raises on purpose.

    Catch it to handle all of them together. Errors of torch, diffusers and the operating system are not among them,
    unless a function's "Raises" section says that it converts them.

    Examples:
        >>> import adjointdpm as adp
        >>> try:
        ...     adp.CoarseAdjoint(steps=0)
        ... except adp.AdjointDPMError as error:
        ...     print(error)
        steps, the backward steps, must be at least 1, but is 0
    """


class InputError(AdjointDPMError, ValueError):
    """An argument cannot be used; the message names its value, what is needed and what to do instead.

    It is a `ValueError` as well.
    """


class MissingTensorError(InputError, KeyError):
    """A `Cond` does not hold a tensor of the requested name; it is a `KeyError` as well."""

    __str__ = Exception.__str__  # a KeyError's is in quotation marks


class NonFiniteError(AdjointDPMError, ArithmeticError):
    """A denoiser, a metric, a classifier or a gradient is NaN or infinite; the message names the place.

    It is an `ArithmeticError` as well.
    """


class RecomputationError(AdjointDPMError, RuntimeError):
    """The backward pass cannot recompute what the forward pass ran; the message names what changed in between.

    It is a `RuntimeError` as well.
    """


class DriftError(AdjointDPMError, ArithmeticError):
    """The states that `Reversible` rebuilds in the backward pass are too far from the sampled ones.

    The message gives the distance. It is an `ArithmeticError` as well.
    """


class GraphPolicy(Enum):
    """What happens to the graph of one denoiser call."""

    KEEP = "keep"
    """It is made in the forward pass and held until the backward pass has used it."""

    RECOMPUTE = "recompute"
    """It is dropped, and made again when the backward pass reaches the call."""

    NO_GRAPH = "no graph"
    """It is never made: the call has no gradient."""


def direct(fn: Callable[..., Any], *tensors: Any) -> Any:
    """Call `fn` at once, and leave its graph to autograd: the `Run` of plain backpropagation.

    Args:
        fn: the function to call.
        tensors: its arguments.

    Returns:
        fn(*tensors).
    """
    return fn(*tensors)


@dataclass(frozen=True, eq=False)
class Time:
    """One instant of the flow, in the network's time, the solver's time and the noise schedule.

        x = alpha x0 + sigma eps,     x = scale z

    A `Schedule` makes it (`schedule.at(t)`); all fields are 0-dimensional float64 tensors on the CPU.

    Args:
        t: the time that the network takes, in its own unit (a training step, a noise level, a fraction).
        tau: the variable that the solver integrates over: rho = sigma / alpha, or s = sigma / (alpha + sigma).
        alpha: the signal's factor at that instant, at least 0.
        sigma: the noise's factor at that instant, at least 0.
        scale: the factor from the solver's state z to x: alpha, or alpha + sigma.
    """

    t: Scalar
    tau: Scalar
    alpha: Scalar
    sigma: Scalar
    scale: Scalar

    @property
    def log_snr_half(self) -> Scalar:
        """lambda = log(alpha / sigma), the variable of the DPM-Solver papers."""
        return self.alpha.log() - self.sigma.log()


Derivative = Callable[[State, Time], State]
"""d state / d tau, as f(state, time)."""


@dataclass(frozen=True, eq=False)
class Cond(Mapping[str, Tensor]):
    """The inputs of the denoiser besides x and t, as named tensors.

    A Cond is a read-only mapping. For a pipeline the names are those of the pipeline's own arguments:
    `prompt_embeds` (batch, tokens, width), `negative_prompt_embeds`. It may hold the guidance scale, 0-dimensional, for
    its gradient; otherwise the sampler's own counts. After a backward pass `cond["prompt_embeds"].grad` holds the
    gradient. Integer tensors, such as attention masks, have no gradient; `differentiable` names the others.

    Args:
        tensors: the tensors by name; each has the batch first, or is 0-dimensional and holds for all of the batch.

    Examples:
        >>> import torch
        >>> import adjointdpm as adp
        >>> mask = torch.ones(1, 4, dtype=torch.long)
        >>> cond = adp.Cond({"prompt_embeds": torch.zeros(1, 4, 8), "mask": mask}).requires_grad_()
        >>> cond.differentiable
        ('prompt_embeds',)
        >>> cond["prompt_embeds"].square().sum().backward()
        >>> cond["prompt_embeds"].grad.shape
        torch.Size([1, 4, 8])
    """

    tensors: Mapping[str, Tensor] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.tensors:
            known = ", ".join(self.tensors) or "no tensors at all"
            raise MissingTensorError(f"this Cond has no {name!r}; it holds {known}")
        return self.tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def replace(self, **tensors: Tensor) -> "Cond":
        """Make a copy with some tensors exchanged or added.

        Args:
            tensors: the new tensors by name.

        Returns:
            the copy; it shares the other tensors with this Cond.
        """
        return Cond({**self.tensors, **tensors})

    def map(self, fn: Callable[[Tensor], Tensor]) -> "Cond":
        """Make a copy with a function applied to every tensor, masks included.

        Args:
            fn: the function, from a tensor to a tensor.

        Returns:
            the copy.
        """
        return Cond({name: fn(tensor) for name, tensor in self.tensors.items()})

    @property
    def differentiable(self) -> tuple[str, ...]:
        """The names of the tensors that can have a gradient: those of floating point."""
        return tuple(name for name, tensor in self.tensors.items() if tensor.is_floating_point())

    def requires_grad_(self, requires_grad: bool = True) -> "Cond":
        """Switch the gradient of every tensor of floating point on or off, in place.

        A tensor that is not a leaf, because its encoder's weights are trained, is made to keep its `.grad` instead.

        Args:
            requires_grad: whether the leaves require a gradient.

        Returns:
            this Cond.
        """
        for name in self.differentiable:
            tensor = self.tensors[name]
            tensor.requires_grad_(requires_grad) if tensor.is_leaf else tensor.retain_grad()
        return self


@dataclass
class Stats:
    """The cost of a sampling and of the backward pass through it, in denoiser calls and bytes.

    A sampler makes a new one at each call, `sampler.stats`; the backward pass adds to it. Weights and conditioning
    are not counted, since they are in memory anyway.

    Args:
        nfe_forward: number of denoiser calls so far, recomputations included. A guided call counts once where both
            halves are one batch, and twice where they are two calls.
        nfe_backward: number of denoiser calls differentiated so far; 0 until `backward()` has run.
        states: bytes of the states that are held from the forward to the backward pass.
        kept: bytes of the denoiser graphs that are held as long.
        recomputed: bytes of the largest denoiser graph that the backward pass makes again.
        decoder: bytes that the decoder's backward pass needs, its largest recomputed block included.
        clamped: share of the pixels that a pipeline's own clamp cut, 0 to 1; they have no gradient.
        measured: whether saved bytes could be counted, which needs torch 2.8.
        reserved: bytes that the planner of `Checkpointed(budget=)` leaves free for the decoder.
        predicted: the planner's prediction of `bytes_saved`; None where nothing was planned.
        trace: (t, |dL/dz| at t) at each node, in the order of the backward pass.
        backward_steps: number of steps of a backward pass with steps of its own; None where it has the sampler's.
        error_estimate: the distance that `CoarseAdjoint(tolerance=)` estimated; None for other adjoints.
        drift: distance between the rebuilt and the true start of `Reversible`, relative to the start's norm; after an
            inversion, that of the end of a sampling from the image's latents. None for others.
    """

    nfe_forward: int = 0
    nfe_backward: int = 0
    states: int = 0
    kept: int = 0
    recomputed: int = 0
    decoder: int = 0
    clamped: float = 0.0
    measured: bool = True
    reserved: int = 0
    predicted: int | None = None
    trace: list[tuple[float, float]] = field(default_factory=list)
    backward_steps: int | None = None
    error_estimate: float | None = None
    drift: float | None = None

    @property
    def bytes_saved(self) -> int | None:
        """Bytes saved for the backward pass at its peak; None where torch cannot count them (before 2.8).

            states + max(kept + decoder, recomputed)

        The decoder is differentiated first, then the graphs that were kept, and only then is the first graph
        made again.
        """
        if not self.measured:
            return None
        return self.states + max(self.kept + self.decoder, self.recomputed)


def in_range(
    name: str,
    value: Any,
    low: float | int = -math.inf,
    high: float | int = math.inf,
    *,
    open_low: bool = False,
) -> None:
    """Check that a number is finite and lies in a range: low <= value <= high.

    Args:
        name: the name of the setting or flag, for the message.
        value: the value to check.
        low: the lowest allowed number.
        high: the highest allowed number.
        open_low: whether `low` itself is not allowed.

    Raises:
        InputError: the value is not a number, is NaN or infinite, or lies outside the range.
    """
    if isinstance(value, Real) and not isinstance(value, bool):
        number: Any = value  # a whole number of any size compares exactly, as a float it would overflow
        above = low < number if open_low else low <= number
        if -math.inf < number < math.inf and above and number <= high:
            return
    parts = [f"{'above' if open_low else 'at least'} {low}"] if math.isfinite(low) else []
    parts += [f"at most {high}"] if math.isfinite(high) else []
    raise InputError(f"{name} must be {' and '.join(parts) or 'a finite number'}, but is {str(value)[:40]}")


@dataclass(frozen=True)
class Range:
    """A finite range of numbers, as the annotation of a settings' field: `Annotated[int, Range(1)]`.

    Args:
        low: the lowest allowed number.
        high: the highest allowed number. It is a million by default, since a larger number is likely to be a typing
            error.
        open_low: whether `low` itself is not allowed.
    """

    low: float | int
    high: float | int = 10**6
    open_low: bool = False

    def __call__(self, name: str, value: Any) -> Any:
        """Check a number, or each number of a tuple.

        Args:
            name: the name of the setting, for the message.
            value: a number, None, or a tuple of those; None stands for no number and passes.

        Returns:
            the value, unchanged.

        Raises:
            InputError: a number is not finite or lies outside the range.
        """
        several: tuple[Any, ...] = value if isinstance(value, tuple) else (value,)
        for each in several:
            if each is not None:
                in_range(name, each, self.low, self.high, open_low=self.open_low)
        return value


@dataclass(frozen=True)
class OneOf:
    """A closed set of words, as the annotation of a settings' field: `Annotated[str, OneOf(("l2", "linf"))]`.

    Args:
        known: the allowed words.
    """

    known: tuple[str, ...]

    def __call__(self, name: str, value: Any) -> Any:
        """Check that a word is among the known ones.

        Args:
            name: the name of the setting, for the message.
            value: the word to check.

        Returns:
            the word, unchanged.

        Raises:
            InputError: the word is not among the known ones.
        """
        if value not in self.known:
            raise InputError(f"{name} is one of {', '.join(self.known)}, but is {value!r}")
        return value


def check_settings(settings: Any) -> None:
    """Check every field of a dataclass that is annotated with a `Range` or `OneOf`.

    Args:
        settings: an instance of the dataclass.

    Raises:
        InputError: a number is not finite or lies outside its range, or a word is not among the known ones.
    """
    kind: Any = type(settings)
    for name, hint in get_type_hints(kind, include_extras=True).items():
        for note in getattr(hint, "__metadata__", ()):
            if isinstance(note, Range | OneOf):
                note(name, getattr(settings, name))
