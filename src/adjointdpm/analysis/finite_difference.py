"""A check of a gradient by finite differences of the whole sampler, which do not depend on the adjoints.

    q_h = (L(v + h d) - L(v - h d)) / 2h,     |q_h - dL/dd| <= C h^2 + delta / h

C h^2 is the function's curvature, delta the rounding error of L. The direction d is half the gradient's own and half
random, so that neither a wrong length nor a missing part goes unnoticed. Networks with ReLUs are straight only between
their kinks, which lie close: so the steps begin where rounding is still small beside the slope, and grow as long as all
quotients agree to within rounding. Three that agree make a value; its uncertainty is their scatter and rounding's share
in the two largest steps. Where fewer agree, or the slopes on the two sides differ, nothing is decided.

It is made in float64, by a copy of the sampler and of the metric's networks, where that fits and works.
"""

import copy
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softmax
from torch.overrides import TorchFunctionMode

from .._types import AdjointDPMError, Cond, NonFiniteError
from ..adjoints.budget import free_memory
from ..flow.influence import compiled
from ..metrics.base import Metric
from ..metrics.frames import for_medium
from ..samplers.base import Sampler
from .gradients import gradients, trainable

__all__ = ["Slope", "finite_difference", "slope"]

# Steps in units of the variable's norm, by the dtype that L is evaluated in.
LADDER = {
    torch.float64: [10 ** (-k / 2) for k in range(24, 1, -1)],
    torch.float32: [10 ** (-k / 2) for k in range(11, 0, -1)],
}
_WIDE = (1e-5, 1e-4, 1e-3)  # steps that even float32 resolves
USABLE = 5e-3  # the largest share of rounding in a quotient that begins a run
AGREE, ENOUGH = 3, 8  # quotients that make a value, and more than which are not needed
ROUNDING = 5e-3  # what float32 may do to a gradient at most, relative to its norm


@dataclass(frozen=True)
class Slope:
    """A slope that finite differences measured.

    Args:
        value: the slope.
        uncertainty: a bound of its error.
        reason: why the slope could not be decided; empty where it could.
    """

    value: float
    uncertainty: float
    reason: str = ""


@dataclass(frozen=True)
class Check:
    """The exact gradient g* compared with finite differences of the sampler, along one direction d.

    Args:
        variable: "noise", a name of the conditioning, or "weights".
        predicted: g* . d.
        measured: the slope on which difference quotients of several steps agree.
        uncertainty: a bound of the error of `measured`: scatter and rounding.
        rounding: a bound of the error of `predicted`, where g* is in float32.
        reason: why nothing could be decided; empty where something was.

    Examples:
        >>> from adjointdpm.analysis.finite_difference import Check
        >>> Check("noise", predicted=1.01, measured=1.0, uncertainty=0.001).verdict
        'does not agree'
    """

    variable: str
    predicted: float
    measured: float
    uncertainty: float
    rounding: float = 0.0
    reason: str = ""

    @property
    def relative_error(self) -> float:
        """|predicted - measured| / |measured|."""
        return abs(self.predicted - self.measured) / max(abs(self.measured), 1e-300)

    @property
    def verdict(self) -> str:
        """The result in words: "agrees", "does not agree", or "could not be decided".

        Prediction and measurement agree where they differ by at most `uncertainty + rounding`.
        """
        if self.reason:
            return "could not be decided"
        near = abs(self.predicted - self.measured) <= self.uncertainty + self.rounding
        return "agrees" if near else "does not agree"

    @property
    def agrees(self) -> bool:
        """Whether the finite differences confirm the gradient."""
        return self.verdict == "agrees"


def slope(
    f: Callable[[float], float], size: float, ladder: Sequence[float], eps: float, about: float = 0.0
) -> Slope:
    """Measure the derivative of a function at 0, with a bound of its error.

        q_h = (f(h) - f(-h)) / 2h

    Args:
        f: the function of a displacement.
        size: the norm of the variable that is displaced, above 0.
        ladder: steps in units of `size`, from the smallest.
        eps: relative rounding error of f.
        about: the expected slope; a slope that is smaller by far need not be distinguished from 0.

    Returns:
        the slope, after at most 15 + 2 len(ladder) evaluations.

    Raises:
        NonFiniteError: f is not finite near 0.

    Examples:
        >>> import math
        >>> from adjointdpm.analysis.finite_difference import slope
        >>> found = slope(math.sin, 1.0, [10 ** (-k / 2) for k in range(24, 1, -1)], 2e-16)
        >>> abs(found.value - 1) < 1e-5
        True
    """

    def at(h: float) -> float:
        value = f(h)
        if not abs(value) < math.inf:
            raise NonFiniteError("the metric is not finite near the point where its gradient is checked")
        return value

    middle, delta = _rounding(at, size * ladder[0] / 10, eps)
    run: list[
        tuple[float, float]
    ] = []  # quotients and rounding's share in them, from the smallest usable step
    for i, h in enumerate(size * step for step in ladder):
        bar = delta / h
        if not run and bar > 1e3 * max(abs(about), eps) and i < len(ladder) - AGREE:
            continue  # not worth two evaluations
        up, down = at(h), at(-h)
        quotient, jump = (up - down) / (2 * h), (up - 2 * middle + down) / h
        if not run and bar > USABLE * max(abs(quotient), abs(about)) and i < len(ladder) - AGREE:
            continue
        if len(run) < AGREE and abs(jump) > 10 * bar:
            # Of a smooth function the jump of the slope shrinks with the step.
            near = (at(h / 4) - 2 * middle + at(-h / 4)) / (h / 4)
            if abs(near) > abs(jump) / 2:
                sides = f"{quotient - jump / 2:.4g} and {quotient + jump / 2:.4g}"
                return Slope(quotient, abs(jump), f"the slopes on the two sides of the point are {sides}")
        if any(abs(quotient - other) > bar + its for other, its in run):
            break
        run.append((quotient, bar))
        if len(run) == ENOUGH:
            break
    if len(run) < AGREE:
        found, bar = run[0] if run else (about, math.inf)
        return Slope(found, bar, "steps that are shorter than the distance of its kinks drown in rounding")
    (value, bar), (_, before) = run[-1], run[-2]
    found = Slope(value, 2 * (bar + before) + max(abs(value - other) for other, _ in run))
    # Where a part of f rounds to float32, it does not see the shortest steps at all: their slope lacks its share.
    wide = [(at(h) - at(-h)) / (2 * h) for h in (size * step for step in _WIDE)]
    settled = max(wide) - min(wide) < 1e-2 * abs(wide[0])
    if settled and abs(wide[0] - value) > found.uncertainty + max(wide) - min(wide):
        why = f"short and long steps settle on different slopes, {value:.4g} and {wide[0]:.4g}: parts round coarser"
        return Slope(value, abs(wide[0] - value), why)
    return found


def _rounding(f: Callable[[float], float], h: float, eps: float) -> tuple[float, float]:
    """Return f at 0 and its rounding error, from displacements so small that f is straight."""
    places = torch.arange(-3, 4, dtype=torch.float64)
    values = torch.tensor([f(i * h) for i in places.tolist()], dtype=torch.float64)
    straight = values.mean() + places * (places @ values) / 28
    return float(values[3]), float(
        4 * (values - straight).square().mean().sqrt() + eps * values.abs().max()
    )


def finite_difference(
    sampler: Sampler, metric: Metric, noise: Tensor, cond: Cond, variable: str, gradient: Tensor
) -> Check:
    """Compare the gradient of one variable with the measured slope along one direction.

        g . d  against  (L(v + h d) - L(v - h d)) / 2h

    It takes 15 to 55 samplings without a gradient, about 25 for most metrics, in float64 where that is possible. A part
    of the gradient that is orthogonal to d goes unnoticed; d is half the gradient's own direction and half random.

    Args:
        sampler: the sampler; its adjoint does not matter.
        metric: a function from images (batch, 3, height, width) to one value an image.
        noise: (batch, *shape).
        cond: the conditioning.
        variable: "noise", a name of the conditioning, or "weights".
        gradient: the gradient to check, in the variable's shape; that of weights is one vector.

    Returns:
        prediction, measurement and their errors.

    Raises:
        NonFiniteError: the metric is not finite near the point.
    """
    cond = sampler.with_guidance(cond)
    generator = torch.Generator().manual_seed(0)
    random = torch.randn(gradient.shape, generator=generator, dtype=torch.float64).to(gradient.device)
    g = gradient.double()
    if float((g * random).sum()) < 0:
        random = -random  # of a single number the two parts would cancel
    way = g / g.norm().clamp(min=1e-300) + random / random.norm()
    way = way / way.norm()
    predicted, slack, native = float((g * way).sum()), 0.0, _Point(sampler, metric, noise, cond, variable)
    point = native.doubled() if noise.dtype != torch.float64 else native
    if point is not None and point is not native:
        own = gradients(point.sampler, point.metric, point.noise, point.cond, [variable]).variables[
            variable
        ]
        # float32's rounding in the gradient itself, capped, so that it hides no error.
        slack = min(2 * abs(float((own.double() * way).sum()) - predicted), ROUNDING * float(g.norm()))
    point = point or native
    dtype = point.noise.dtype
    found = slope(lambda h: point.at(h * way), point.size, LADDER[dtype], torch.finfo(dtype).eps, predicted)
    if found.reason and point is native and dtype == torch.float32:
        found = Slope(found.value, found.uncertainty, f"{found.reason}, in float32, since {native.why}")
    return Check(variable, predicted, found.value, found.uncertainty, slack, found.reason)


class _Point:
    """The point at which a metric of a sampler is displaced in one variable; weights are restored bit for bit."""

    def __init__(self, sampler: Sampler, metric: Metric, noise: Tensor, cond: Cond, variable: str) -> None:
        self.sampler, self.metric, self.noise, self.cond, self.variable = (
            sampler,
            for_medium(metric, sampler.medium),
            noise,
            cond,
            variable,
        )
        named = {"noise": [noise], "weights": trainable(sampler) if variable == "weights" else []}
        self.leaves: list[Tensor] = named.get(variable) or [cond[variable]]
        self.size = float(sum(leaf.detach().double().square().sum() for leaf in self.leaves)) ** 0.5 or 1.0
        self.why = ""

    def at(self, away: Tensor) -> float:
        """Return the metric's sum with the variable displaced."""
        parts = away.flatten().split([leaf.numel() for leaf in self.leaves])
        before = [leaf.detach().clone() for leaf in self.leaves]
        moved = [b + part.view_as(b).to(b) for b, part in zip(before, parts, strict=True)]
        with torch.no_grad():
            if self.variable == "weights":
                for leaf, value in zip(self.leaves, moved, strict=True):
                    leaf.copy_(value)
            try:
                noise = moved[0] if self.variable == "noise" else self.noise
                named = {self.variable: moved[0]} if self.variable in self.cond else {}
                return self._value(noise, self.cond.replace(**named))
            finally:
                if self.variable == "weights":
                    for leaf, value in zip(self.leaves, before, strict=True):
                        leaf.copy_(value)

    def doubled(self) -> "_Point | None":
        """Return the same point in float64, with copies of all networks; None and `why` where that is not possible."""
        weights = sum(weight.numel() for weight in self.sampler.parameters())
        free = free_memory(self.noise.device)
        if free is not None and 8 * weights > free / 4:
            self.why = "a copy of the networks in float64 does not fit"
            return None
        try:
            sampler, metric = copy.deepcopy(self.sampler).double(), copy.deepcopy(self.metric)
            for module in _modules(metric, set()):
                module.double()
            cond = self.cond.map(lambda t: t.detach().double() if t.is_floating_point() else t)
            point = _Point(sampler, metric, self.noise.detach().double(), cond, self.variable)
            ours, theirs = self.here(), point.here()
        except (AdjointDPMError, RuntimeError, TypeError, ValueError, AttributeError) as error:
            says = " ".join(f"{type(error).__name__}: {error}".split())[:100]
            self.why = f"the networks or the metric do not run in float64 ({says})"
            return None
        if not abs(ours - theirs) <= 1e-2 * max(abs(ours), 1e-3):
            self.why = f"the metric is {theirs:.4g} in float64 and {ours:.4g} here"
            return None
        return point

    def here(self) -> float:
        """Return the metric's sum at the point itself."""
        with torch.no_grad():
            return self._value(self.noise, self.cond)

    def _value(self, noise: Tensor, cond: Cond) -> float:
        wide = noise.dtype == torch.float64 and not compiled(self.sampler)
        with _Wide() if wide else nullcontext():
            return float(self.metric(self.sampler(noise, cond)).double().sum())


class _Wide(TorchFunctionMode):
    """Keeps float64 where a network rounds to float32 on purpose, as before a softmax."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if args and isinstance(args[0], Tensor) and args[0].dtype == torch.float64:
            if func is Tensor.float:
                return args[0]
            if func in (Tensor.to, Tensor.type, softmax):
                args = tuple(torch.float64 if each is torch.float32 else each for each in args)
                kwargs = {k: torch.float64 if each is torch.float32 else each for k, each in kwargs.items()}
        return func(*args, **kwargs)


def _modules(thing: Any, seen: set[int]) -> list[nn.Module]:
    """Return the networks that a metric holds: in its fields, in those of its terms, behind its methods."""
    if id(thing) in seen or isinstance(thing, Tensor | str | int | float | None):
        return []
    seen.add(id(thing))
    if isinstance(thing, nn.Module):
        return [thing, *(found for value in vars(thing).values() for found in _modules(value, seen))]
    inside: list[Any] = [getattr(thing, "__self__", None)]
    if isinstance(thing, dict):
        inside += thing.values()
    elif isinstance(thing, list | tuple | set):
        inside += thing
    elif is_dataclass(thing):
        inside += [getattr(thing, each.name) for each in fields(thing)]
    elif hasattr(thing, "__dict__") and not isinstance(thing, type):
        inside += vars(thing).values()
    return [found for each in inside for found in _modules(each, seen)]
