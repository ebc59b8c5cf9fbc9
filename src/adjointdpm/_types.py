"""The words every other module speaks: a time, a conditioning, a policy, an error.

Time     one instant: the network's t, the solver's tau, and alpha, sigma with x = alpha x0 + sigma eps
Cond     what the denoiser is given besides (x, t): named tensors, each of which can require a gradient
Run      how one denoiser call is executed: kept, recomputed or without a graph (the adjoint decides)
State    what a solver advances: a tuple of tensors, so that the same solvers do the augmented ODE
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
    """Base of the errors that this library raises on purpose."""


class InputError(AdjointDPMError, ValueError):
    """What was given cannot be used; the message says what was needed and what to do."""


class MissingTensorError(InputError, KeyError):
    """A conditioning does not hold a tensor that is asked of it."""

    __str__ = Exception.__str__  # a KeyError's is in quotation marks


class NonFiniteError(AdjointDPMError, ArithmeticError):
    """NaN or infinity came out of a denoiser or a metric; the message says where."""


class RecomputationError(AdjointDPMError, RuntimeError):
    """What the backward pass would recompute is not what the forward pass ran; the message names what changed."""


class DriftError(AdjointDPMError, ArithmeticError):
    """States rebuilt in a backward pass are not those that were; the message says how far off."""


class GraphPolicy(Enum):
    """What happens to the graph of one denoiser call."""

    KEEP = "keep"
    """It is made in the forward pass and held until the backward pass has used it."""

    RECOMPUTE = "recompute"
    """It is dropped, and made again when the backward pass reaches the call."""

    NO_GRAPH = "no graph"
    """It is never made: the call has no gradient."""


def direct(fn: Callable[..., Any], *tensors: Any) -> Any:
    """Call `fn` at once, and leave its graph to autograd: the `Run` of plain backpropagation."""
    return fn(*tensors)


@dataclass(frozen=True, eq=False)
class Time:
    """One instant of the flow, in the three clocks the equations use.

    t      the time that the network takes (its own unit: a training step, a noise level, a fraction)
    tau    what the solver integrates over (rho = sigma / alpha, or s = sigma / (alpha + sigma))
    alpha, sigma   the noise schedule there: x = alpha x0 + sigma eps
    scale  x = scale z, with z the solver's state (alpha, or alpha + sigma)
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
    """The inputs of the denoiser besides x and t, as named tensors (batch first, or 0-dimensional).

    For a pipeline the names are those of its own arguments: `prompt_embeds` (batch, tokens, width),
    `negative_prompt_embeds`, and, where its gradient is wanted, `guidance_scale` (a 0-dimensional tensor); without
    it the sampler's own counts. A Cond is a
    read-only mapping; `cond["prompt_embeds"].grad` holds the gradient after a backward pass. Integer
    tensors (attention masks) travel along and have none: `differentiable` names the others.
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
        """A copy with some tensors exchanged or added."""
        return Cond({**self.tensors, **tensors})

    def map(self, fn: Callable[[Tensor], Tensor]) -> "Cond":
        """A copy with `fn` applied to every tensor."""
        return Cond({name: fn(tensor) for name, tensor in self.tensors.items()})

    @property
    def differentiable(self) -> tuple[str, ...]:
        """The names of the tensors that can have a gradient: all but masks."""
        return tuple(name for name, tensor in self.tensors.items() if tensor.is_floating_point())

    def requires_grad_(self, requires_grad: bool = True) -> "Cond":
        """Ask for the gradient of every tensor but masks, in place; returns itself.

        A tensor that is not a leaf, because its encoder's weights are trained, keeps its `.grad`, too.
        """
        for name in self.differentiable:
            tensor = self.tensors[name]
            tensor.requires_grad_(requires_grad) if tensor.is_leaf else tensor.retain_grad()
        return self


@dataclass
class Stats:
    """What a sampling, and the backward pass through it, did and held.

    nfe_forward    denoiser calls so far, recomputations included (a guided call counts once when
                   both halves travel in one batch, twice when they are two calls)
    nfe_backward   denoiser calls differentiated so far; zero until `backward()` has run
    states         bytes of states held from the forward to the backward pass
    kept           bytes of denoiser graphs held as long
    recomputed     bytes of the largest denoiser graph made anew in the backward pass
    decoder        bytes that the decoder's backward pass needs, its largest recomputed block included
    clamped        share of the pixels that a pipeline's own clamp cut: they have no gradient
    reserved       bytes that a planner leaves free for the decoder
    predicted      the planner's figure for `bytes_saved`
    trace          (t, |dL/dz| there) at each node, in the order of the backward pass
    backward_steps steps of a backward pass that has its own; None where it has the sampler's
    error_estimate what `CoarseAdjoint(tolerance=)` estimated
    drift          how far `Reversible` came back from its start, relative to it

    Weights and conditioning are not counted: they are there anyway.
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
        """Bytes saved for the backward pass at its peak; None where torch cannot tell (before 2.8).

        The decoder is differentiated first, then the graphs that were kept, and only then is the
        first graph made anew: states + max(kept + decoder, recomputed).
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
    """Check that a number is finite and low <= value <= high.

    Args:
        name: of the setting or flag, for the message.
        value: what was given.
        low, high: the range.
        open_low: whether `low` itself is outside.

    Raises:
        InputError: it is not a number, is NaN or infinite, or lies outside the range.
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
    """`Annotated[int, Range(1)]` is a field of settings whose numbers are finite and lie in a range; see `in_range`.

    The highest value is a million by default: what is beyond is a slip of the finger.
    """

    low: float | int
    high: float | int = 10**6
    open_low: bool = False

    def __call__(self, name: str, value: Any) -> Any:
        """Check one number, or all of several; None stands for no number. Returns the value."""
        for each in value if isinstance(value, tuple) else (value,):
            if each is not None:
                in_range(name, each, self.low, self.high, open_low=self.open_low)
        return value


@dataclass(frozen=True)
class OneOf:
    """`Annotated[str, OneOf(("l2", "linf"))]` is a field of settings that holds one of some words."""

    known: tuple[str, ...]

    def __call__(self, name: str, value: Any) -> Any:
        """Check one word. Returns it."""
        if value not in self.known:
            raise InputError(f"{name} is one of {', '.join(self.known)}, but is {value!r}")
        return value


def check_settings(settings: Any) -> None:
    """Check every field of a dataclass that is annotated with a `Range` or `OneOf`.

    Raises:
        InputError: A number is not finite or lies outside its range, or a word is not among the known ones.
    """
    for name, hint in get_type_hints(type(settings), include_extras=True).items():
        for note in getattr(hint, "__metadata__", ()):
            if isinstance(note, Range | OneOf):
                note(name, getattr(settings, name))
