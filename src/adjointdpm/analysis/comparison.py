"""The error and the cost of each adjoint's gradient, measured against the exact gradient in one run."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .._types import Cond, InputError
from ..adjoints import (
    Adjoint,
    Backprop,
    Checkpointed,
    CoarseAdjoint,
    Continuous,
    DirectAlign,
    DRTune,
    FlowBP,
    LeapAlign,
    Reversible,
    Surrogate,
    Truncated,
)
from ..adjoints.budget import free_memory
from ..adjoints.cotangents import cotangents
from ..metrics.base import Metric
from ..optimization.progress import progress
from ..samplers.base import Sampler
from ..samplers.flow_sampler import FlowSampler
from ..solvers import Coupled, Euler
from .comparison_report import Comparison, Profile, Row
from .finite_difference import Check, finite_difference
from .gradients import gradients

__all__ = ["Comparison", "Row", "compare"]

_CHECK = 10
"""Gradients that take as long as one check by finite differences, roughly."""


@dataclass
class _Contender:
    """One adjoint with the measurements of its gradients."""

    adjoint: Adjoint
    sampler: Sampler
    gradients: dict[str, Tensor] = field(default_factory=dict)
    refusals: dict[str, str] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    trace: list[tuple[float, Tensor]] = field(default_factory=list)
    peak: int | None = None


def compare(
    sampler: Sampler,
    metric: Metric,
    adjoints: Sequence[Adjoint] | None = None,
    *,
    noise: Tensor | None = None,
    cond: Cond | None = None,
    variables: Sequence[str] | None = None,
    repeats: int = 3,
    check: bool = True,
    quiet: bool = False,
) -> Comparison:
    """Compare each adjoint's gradient with the exact one of the same sampler: error, cost and a recommendation.

        relative error = |g - g*| / |g*|,     cosine = g . g* / (|g| |g*|)

    The exact gradient g* is that of `Checkpointed()`, which equals plain autograd and is itself compared with finite
    differences of the sampler. The adjoints take turns, `repeats` times after one round of warm-up, in which the
    gradients along the trajectory are kept; a time is the median.

    Use it before you choose an adjoint that is not exact, with your own model, on several noises and prompts: an
    error depends on all of them, and one run says nothing about other noises.

    Args:
        sampler: the sampler; its own adjoint does not matter.
        metric: a function from images (batch, 3, height, width) to one value an image.
        adjoints: the adjoints to compare; by default those that the sampler can have, see `default_adjoints`, and of
            weights the surrogates as well, see `default_surrogates`.
        noise: (batch, *shape); by default one sample of seed 0.
        cond: the conditioning; by default that of the empty prompt.
        variables: some of "noise", the names in `cond`, and "weights"; by default the noise, each part of the
            conditioning that can have a gradient (the guidance scale only where there is guidance), and the weights
            if any is trainable.
        repeats: number of timed rounds, at least 1.
        check: whether finite differences are made: for each variable about 25 samplings without a gradient, in
            float64 where the networks and the metric run in it (`finite_difference`).
        quiet: compare without a progress bar.

    Returns:
        the rows, the profiles along the trajectory, the checks and a recommendation; `print` shows them.

    Raises:
        InputError: repeats < 1, there are no adjoints, the exact gradient is 0, or `gradients` refuses an input or
            the metric.
        NonFiniteError: the metric is NaN or infinite.

    Examples:
        >>> import adjointdpm as adp
        >>> sampler = adp.load_bundled("emoji", steps=2)
        >>> comparison = adp.compare(
        ...     sampler, adp.metrics.Chroma(), [adp.Backprop()], variables=["noise"], repeats=1, check=False
        ... )
        >>> comparison.rows[0].relative_error
        0.0
    """
    if repeats < 1:
        raise InputError(f"repeats must be at least 1, but is {repeats}")
    noise = sampler.noise() if noise is None else noise
    cond = sampler.with_guidance(sampler.encode("") if cond is None else cond)
    trained = any(p.requires_grad for p in sampler.parameters())
    if variables is None:
        guided = any(name.startswith("negative_") for name in cond)
        # A scale alone has no influence; where there is guidance it is a variable like any other.
        prompt = [name for name in cond.differentiable if cond[name].ndim or guided]
        variables = ["noise", *prompt, *(["weights"] if trained else [])]
    if adjoints is None:
        adjoints = [
            *default_adjoints(sampler),
            *(default_surrogates(sampler) if "weights" in variables else []),
        ]
    if not adjoints:
        raise InputError("compare needs at least one adjoint, but the list is empty")
    contenders = [_Contender(each, sampler.replace(adjoint=each)) for each in adjoints]
    exact = _Contender(Checkpointed(), sampler.replace(adjoint=Checkpointed()))
    checks: list[Check] = []
    checked = variables if check else ()
    total = 1 + (1 + repeats) * len(contenders) + _CHECK * len(checked)
    with progress("compare", total, quiet) as bar:
        for each in (exact, *contenders):
            bar.set_postfix_str(f"gradients, {_label(each.adjoint)}")
            with cotangents() as each.trace:
                _take(each, metric, noise, cond, variables, first=True)
            if not any(bool(gradient.any()) for gradient in exact.gradients.values()):
                raise InputError(
                    "the exact gradient of every variable is 0, so that no error is relative to it; give a metric that "
                    "is not at its minimum in this image"
                )
            bar.update()
        for _ in range(repeats):
            for each in contenders:
                bar.set_postfix_str(f"timing, {_label(each.adjoint)}")
                start = time.perf_counter()
                _take(each, metric, noise, cond, variables)
                _wait(noise)
                each.seconds.append(time.perf_counter() - start)
                bar.update()
        for name in checked:
            bar.set_postfix_str(f"finite differences, {name}")
            found = finite_difference(exact.sampler, metric, noise, cond, name, exact.gradients[name])
            checks.append(found)
            bar.update(_CHECK)
    return Comparison(
        tuple(row for each in contenders for row in _rows(each, exact, variables)),
        tuple(_profile(each, exact) for each in contenders if each.trace),
        tuple(checks),
        free_memory(noise.device),
    )


def default_adjoints(sampler: Sampler) -> list[Adjoint]:
    """Return the adjoints that `compare` takes by default.

    They are the exact ones and DRaFT-1 (with a `Coupled` solver `Reversible()` in its place), and for a `FlowSampler`
    also `CoarseAdjoint` with a half and a third of the steps and the adjoint ODE of the paper's release.

    Args:
        sampler: the sampler.

    Returns:
        the adjoints, at least three.
    """
    cheap = Reversible() if isinstance(sampler.solver, Coupled) else Truncated(last=1)
    everyone: list[Adjoint] = [Backprop(), Checkpointed(), cheap]
    if not isinstance(sampler, FlowSampler):
        return everyone
    return [
        *everyone,
        *(
            CoarseAdjoint(steps=m)
            for m in sorted({max(1, sampler.length // part) for part in (2, 3)}, reverse=True)
        ),
        Continuous(solver=Euler()),
        # Where the steps add noise, states cannot be solved for again.
        *([Continuous(solver=Euler(), trajectory="resolved")] if sampler.solver.drift == 1 else []),
    ]


def default_surrogates(sampler: Sampler) -> list[Adjoint]:
    """Return the surrogates of a weight gradient that `compare` adds by default.

    Args:
        sampler: the sampler.

    Returns:
        those that the sampler's steps allow: `LeapAlign` and the connector "lagrange" need one call a step and no
            noise, and a pipeline's own scheduler has the two that follow its steps.
    """
    if not isinstance(sampler, FlowSampler):
        return [DRTune(early_stop=0.0), FlowBP()]
    one_call = sampler.solver.drift == 1 and sampler.solver.calls(4) == 4
    leaps: list[Adjoint] = (
        [FlowBP(connector="lagrange"), LeapAlign()] if one_call and sampler.length > 1 else []
    )
    bridge: list[Adjoint] = [FlowBP(connector="bridge")] if sampler.length > 1 else []
    return [DRTune(), FlowBP(), *bridge, *leaps, DirectAlign()]


def _take(
    each: _Contender,
    metric: Metric,
    noise: Tensor,
    cond: Cond,
    variables: Sequence[str],
    first: bool = False,
) -> None:
    """Take one gradient of all variables that the adjoint does not refuse.

    Raises:
        InputError: the gradient is refused for another reason than that of an adjoint that has none for the noise.
    """
    wanted = [name for name in variables if name not in each.refusals]
    if noise.is_cuda:
        torch.cuda.reset_peak_memory_stats(noise.device)
    if not wanted:
        return  # its rows say why
    try:
        each.gradients = gradients(each.sampler, metric, noise, cond, wanted).variables
    except InputError as error:
        if "noise" not in wanted or not first or not isinstance(each.adjoint, Truncated | Surrogate):
            raise
        # A truncated gradient and surrogates refuse the noise; the rest is taken again.
        each.refusals["noise"] = str(error)
        wanted.remove("noise")
        if wanted:
            each.gradients = gradients(each.sampler, metric, noise, cond, wanted).variables
    if noise.is_cuda:
        each.peak = torch.cuda.max_memory_allocated(noise.device)


def _rows(each: _Contender, exact: _Contender, variables: Sequence[str]) -> list[Row]:
    stats = each.sampler.stats
    cost = (stats.bytes_saved, stats.nfe_forward, stats.nfe_backward, statistics.median(each.seconds))
    if not each.gradients:  # all was refused
        cost = (None, 0, 0, 0.0)
    return [
        Row(
            _label(each.adjoint),
            name,
            *_accuracy(each.gradients.get(name), exact.gradients[name]),
            *cost,
            refusal=each.refusals.get(name, ""),
            peak_bytes=each.peak,
        )
        for name in variables
    ]


def _profile(each: _Contender, exact: _Contender) -> Profile:
    known = dict(exact.trace)
    errors = [_accuracy(g, known[t])[0] if t in known else None for t, g in each.trace]
    norms = [float(g.double().norm()) for _, g in each.trace]
    times = [t for t, _ in each.trace]
    return Profile(_label(each.adjoint), tuple(times), tuple(norms), tuple(errors))


def _label(adjoint: Adjoint) -> str:
    """Return the adjoint's expression in Python, without arguments that have their default."""
    usual = type(adjoint)()
    shown = [f"{name}={value!r}" for name, value in vars(adjoint).items() if value != getattr(usual, name)]
    return f"{type(adjoint).__name__}({', '.join(shown)})"


def _accuracy(found: Tensor | None, exact: Tensor) -> tuple[float | None, float | None, float | None]:
    if found is None:
        return None, None, None
    g, reference = found.double().flatten(), exact.double().flatten()
    norms = g.norm(), reference.norm()
    tiny = torch.finfo(torch.float64).tiny
    error = (g - reference).norm() / norms[1].clamp(min=tiny)
    cosine = g @ reference / (norms[0] * norms[1]).clamp(min=tiny)
    return float(error), float(cosine), float(norms[0] / norms[1].clamp(min=tiny))


def _wait(tensor: Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)
