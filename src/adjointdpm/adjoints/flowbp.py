"""FlowBP: surrogates that keep the sampler's own path, with cached velocities between the differentiated ones.

    sparse      xhat = z_0 + sum_i D_i v_i          v_i = v(sg(z_i)) for K calls, cached for the others
    bridge      zhat_j as sparse over the calls before j, zhat_N as sparse from zconn_j on, and at j
                v_j = v(a zconn_j + (1 - a) sg(zconn_j)),     zconn_j = zhat_j + sg(z_j - zhat_j)
    lagrange    zhat_j = z_k + sum_i L_i v_i,       zhat_N = zconn_j + sum_i L_i v_i,    v_j as in bridge

D_i are the weights with which the sampler's steps add up the velocities, Euler's step sizes. K calls are drawn with
probability proportional to (i + 1)^b, without replacement. L_i integrate the Lagrange polynomials of a few calls,
evenly spread over the interval, over tau; the first of them has the whole gradient, the second one `scale` of it.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from .._types import InputError, OneOf, in_range
from ..solvers.integrate import IVP
from .surrogate import DetachedCalls, Leap, Plan, Planned, Quadrature

__all__ = ["FlowBP", "lagrange_weights", "late_biased"]


@dataclass(frozen=True)
class FlowBP(Planned):
    """The gradient of a few velocities on the sampler's own path (Wang et al., 2026, arXiv 2606.11075).

        sparse: xhat = z_0 + sum_i D_i v_i        bridge: cut at j, coupled by a        lagrange: two quadratures

        memory: K states + 1 graph;    time: N f + K (f + b), with K = 4 at most for lagrange

    Use it to train weights with many steps, where `compare` shows that it is near enough. "sparse" leaves out how a
    change of one velocity changes later ones, "bridge" keeps a part of that at one call, and "lagrange" also replaces
    the sampler's steps by a quadrature of `order` calls on each side of j. Do not use it for noise, whose gradient is
    refused. The image is the sampler's own (straight-through).

    Equations hold in the coordinates z and tau of this library: for a rectified flow z = x and tau = sigma, which is
    the published form; for a model of noise z = x / alpha, tau = sigma / alpha and v = eps, where early steps are far
    longer than late ones, which the weights and `rescale` inherit. With a solver other than Euler D_i are that solver's
    own weights, so that "sparse" with all calls is the sampling itself but for the Jacobians of the states.

    Args:
        connector: which of the three.
        steps: K >= 1, the number of differentiated calls of "sparse" and "bridge" (at least 2 there: one on each side
            of the cut, in proportion to the sides' lengths); all if there are fewer.
        bias: b >= 0; the larger, the later the calls.
        rescale: g >= 0; the differentiated velocities have 1 + g (sum |D| / sum_active |D| - 1) times their gradient,
            which with g = 1 makes up in length for the calls that are left out.
        coupling: a, 0 to 1, the part of the gradient that passes through the input of call j.
        order: of "lagrange": the number of calls that its polynomials interpolate, at least 1.
        scale: of "lagrange": the part of its gradient that the second call of each interval keeps, 0 to 1.
        similarity: of "lagrange": a distance t > 0 that scales each sample's gradient as in `LeapAlign`; None leaves
            that out. The published training has 0.2.
        seed: decides the calls, together with the noise: the same for the same noise; see `DRTune`.

    Raises:
        InputError: an unknown connector or a number outside its range; the noise or the time grid requires a gradient;
            too few steps; or, for "lagrange", a solver that adds noise or makes several calls a step.

    References:
        Wang et al., 2026, arXiv 2606.11075.

    Examples:
        >>> import adjointdpm as adp
        >>> sampler = adp.load_bundled("emoji", steps=6, adjoint=adp.FlowBP(connector="bridge", steps=3))
        >>> cond = sampler.encode("a cat").requires_grad_()
        >>> sampler(sampler.noise(1), cond).mean().backward()
        >>> sampler.stats.nfe_backward
        3
    """

    connector: Literal["sparse", "bridge", "lagrange"] = "sparse"
    steps: int = 4
    bias: float = 2.0
    rescale: float = 0.0
    coupling: float = 0.1
    order: int = 3
    scale: float = 0.25
    similarity: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        OneOf(("sparse", "bridge", "lagrange"))("connector", self.connector)
        least = 2 if self.connector == "bridge" else 1
        in_range("steps, the differentiated calls,", self.steps, least)
        in_range("order, of the interpolation,", self.order, 1)
        in_range("bias", self.bias, 0)
        in_range("rescale", self.rescale, 0)
        in_range("coupling", self.coupling, 0, 1)
        in_range("scale", self.scale, 0, 1)
        if self.similarity is not None:
            in_range("similarity, a distance,", self.similarity, 0, open_low=True)

    def plan(self, ivp: IVP, quadrature: Quadrature, choices: random.Random) -> Plan:
        calls, N = quadrature.useful, quadrature.calls
        if self.connector == "sparse":
            active = late_biased(calls, self.steps, self.bias, choices)
            return Plan(self._rescaled(quadrature.weights(N), active, calls))
        if len(calls) < 2:
            raise InputError(
                f"{self!r} needs at least 2 steps, one on each side of the cut, but the sampler has {N}"
            )
        return (
            self._bridge(quadrature, choices)
            if self.connector == "bridge"
            else self._lagrange(ivp, quadrature, choices)
        )

    def in_pipeline(self) -> DetachedCalls:
        if self.connector != "sparse" or self.rescale:
            return super().in_pipeline()
        return DetachedCalls(
            self,
            lambda calls, choices: late_biased(range(calls), self.steps, self.bias, choices),
            self.seed,
        )

    def _bridge(self, quadrature: Quadrature, choices: random.Random) -> Plan:
        calls = quadrature.useful
        N = len(calls)
        cut = max(choices.sample(range(N), 2))
        total = min(self.steps, N)
        before = min(max(round(total * cut / N), 1, total - (N - cut)), total - 1)
        early = late_biased(calls[:cut], before, self.bias, choices)
        late = [calls[cut], *late_biased(calls[cut + 1 :], total - before - 1, self.bias, choices)]
        own, inner = quadrature.weights(quadrature.calls), quadrature.weights(calls[cut])
        factor = self._factor(own, [*early, *late], calls)
        weights = self._rescaled(own, [*early, *late], calls)
        return Plan(weights, calls[cut], self.coupling, {i: factor * inner[i] for i in early})

    def _lagrange(self, ivp: IVP, quadrature: Quadrature, choices: random.Random) -> Plan:
        quadrature.refuse_leaps(ivp, self)
        N, tau = quadrature.calls, [*quadrature.taus, quadrature.end]
        k, j = _two_calls(N, choices)
        leaps, kept = [], []
        for start, target in ((k, j), (j, N)):
            supports = _spread(start, target, self.order)
            each = lagrange_weights([tau[i] for i in supports], tau[start], tau[target])
            leaps.append(Leap(start, target, dict(zip(supports, each, strict=True))))
            active = {i: 1.0 if i == start else self.scale for i in supports[:2]}
            factor = self._factor(leaps[-1].weights, list(active), supports)
            kept.append({i: factor * part * leaps[-1].weights[i] for i, part in active.items() if part})
        scaled: dict[str, Any] = {}
        if self.similarity is not None:
            scaled = {"leaps": tuple(leaps), "floor": self.similarity}
        return Plan(kept[0] | kept[1], j, self.coupling, kept[0], **scaled)

    def _factor(
        self, weights: Sequence[float] | Mapping[int, float], active: Sequence[int], among: Sequence[int]
    ) -> float:
        """1 + g (sum |D| / sum_active |D| - 1)."""
        there = sum(abs(weights[i]) for i in active)
        return 1 + self.rescale * (sum(abs(weights[i]) for i in among) / there - 1) if there else 1.0

    def _rescaled(self, own: list[float], active: Sequence[int], among: Sequence[int]) -> dict[int, float]:
        factor = self._factor(own, active, among)
        return {i: factor * own[i] for i in active}


def late_biased(calls: Sequence[int], count: int, bias: float, choices: random.Random) -> list[int]:
    """Draw calls without replacement, with probability proportional to (i + 1)^bias, i the place in the sequence.

    Args:
        calls: the calls to draw from.
        count: how many; all if there are fewer.
        bias: the exponent.
        choices: makes the draws.

    Returns:
        the calls, increasing.
    """
    left, found = list(range(len(calls))), []
    while left and len(found) < count:
        (i,) = choices.choices(left, [(place + 1) ** bias for place in left])
        left.remove(i)
        found.append(i)
    return [calls[i] for i in sorted(found)]


def lagrange_weights(points: Sequence[float], start: float, target: float) -> list[float]:
    """The integrals of the Lagrange polynomials of some points, from `start` to `target`.

        L_i = int prod_{j != i} (tau - tau_j) / (tau_i - tau_j) dtau

    Args:
        points: tau_i, distinct.
        start: the lower end.
        target: the upper end.

    Returns:
        L_i, exact for polynomials of degree len(points) - 1.
    """
    # Solved in units of the interval, so that the system of the moments is well scaled.
    h = target - start
    place = torch.tensor([(tau - start) / h for tau in points], dtype=torch.float64)
    powers = torch.arange(len(points), dtype=torch.float64)
    return (h * torch.linalg.solve(place[None, :] ** powers[:, None], 1 / (powers + 1))).tolist()


def _spread(start: int, target: int, order: int) -> list[int]:
    """At most `order` calls of [start, target), evenly spread, both ends included."""
    last = target - 1 - start
    if last < order:
        return list(range(start, target))
    if order == 1:
        return [start]
    return [start + round(i * last / (order - 1)) for i in range(order)]


def _two_calls(N: int, choices: random.Random) -> tuple[int, int]:
    """Draw the calls k < j that begin the two intervals.

    The calls are divided in three, before k, between k and j, and after j, by a Dirichlet distribution (2, 6, 2.5),
    which is the published one. So the first interval is as a rule the longest, and k lies early.

    Args:
        N: the number of calls, at least 2.
        choices: makes the draw.

    Returns:
        k and j.
    """
    before, between, after = (choices.gammavariate(each, 1.0) for each in (2.0, 6.0, 2.5))
    whole = before + between + after
    j = min(max(N - 1 - round(N * after / whole), 1), N - 1)
    k = min(max(round(N * before / whole) - 1, 0), j - 1)
    return k, j
