"""How wrong is a gradient, and what did it cost? Every adjoint against the exact gradient, in one run."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from ._types import Cond, InputError
from .adjoints import Adjoint, Backprop, Checkpointed, Continuous, Truncated
from .gradients import Metric, gradients
from .sampler import Sampler
from .solvers import Euler

__all__ = ["Comparison", "Row", "compare"]


@dataclass(frozen=True)
class Row:
    """One adjoint's gradient of one variable, beside the exact one.

    relative_error  |g - g*| / |g*|     cosine  g . g* / (|g| |g*|)     norm_ratio  |g| / |g*|
    bytes_saved     peak of what was saved for backward     seconds  forward and backward, median
    nfe_forward, nfe_backward   denoiser calls made and differentiated
    The three accuracies are None where the adjoint refuses this variable; `refusal` then says why.
    """

    adjoint: str
    variable: str
    relative_error: float | None
    cosine: float | None
    norm_ratio: float | None
    bytes_saved: int | None
    nfe_forward: int
    nfe_backward: int
    seconds: float
    refusal: str = ""


@dataclass(frozen=True)
class Comparison:
    """The rows of a comparison; `print(comparison)` is a table, `as_dicts()` is for JSON."""

    rows: tuple[Row, ...]

    def as_dicts(self) -> list[dict[str, object]]:
        """The rows as plain dictionaries."""
        return [asdict(row) for row in self.rows]

    def cells(self) -> list[tuple[str, ...]]:
        """The table as text: a line of heads, then a line a row."""
        return [_HEAD, *(_cells(row) for row in self.rows)]

    def __str__(self) -> str:
        lines = self.cells()
        widths = [max(len(line[i]) for line in lines) for i in range(len(_HEAD))]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in lines
        )


_HEAD = ("adjoint", "variable", "error", "cosine", "norm", "MB saved", "calls f/b", "seconds")


def _cells(row: Row) -> tuple[str, ...]:
    def shown(number: float | None, form: str) -> str:
        return "-" if number is None else format(number, form)

    return (
        row.adjoint,
        row.variable,
        "refused" if row.refusal else shown(row.relative_error, ".1e"),
        shown(row.cosine, ".4f"),
        shown(row.norm_ratio, ".3f"),
        shown(None if row.bytes_saved is None else row.bytes_saved / 1e6, ".1f"),
        f"{row.nfe_forward}/{row.nfe_backward}",
        f"{row.seconds:.2f}",
    )


def compare(
    sampler: Sampler,
    metric: Metric,
    adjoints: Sequence[Adjoint] | None = None,
    *,
    noise: Tensor | None = None,
    cond: Cond | None = None,
    variables: Sequence[str] | None = None,
    repeats: int = 3,
) -> Comparison:
    """Each adjoint's gradient against the exact one of the same sampler, with its cost.

    The exact gradient is `Checkpointed()`'s, which equals plain autograd. Adjoints are timed in turn,
    `repeats` times round after one round of warm-up; a time is the median.

    Args:
        sampler: the sampler; its own adjoint does not matter.
        metric: one value a picture.
        adjoints: those to compare; by default every exact one, DRaFT-1, and the paper's in three forms.
        noise: (batch, *shape); by default one sample of seed 0.
        cond: the conditioning; by default the empty prompt's.
        variables: among "noise", the names in `cond`, and "weights"; by default noise and prompt, and
            the weights if any is trainable.
        repeats: timed rounds, at least 1.
    Raises:
        InputError: repeats < 1, or an input or metric that `gradients` would refuse.
    """
    if repeats < 1:
        raise InputError(f"repeats must be at least 1, but is {repeats}")
    noise = sampler.noise() if noise is None else noise
    cond = sampler.encode("") if cond is None else cond
    if variables is None:
        trained = any(p.requires_grad for p in sampler.parameters())
        variables = ["noise", "prompt_embeds", *(["weights"] if trained else [])]
    adjoints = default_adjoints() if adjoints is None else adjoints
    exact = gradients(sampler.replace(adjoint=Checkpointed()), metric, noise, cond, variables).variables
    samplers = [sampler.replace(adjoint=adjoint) for adjoint in adjoints]
    seconds: list[list[float]] = [[] for _ in adjoints]
    found: list[dict[str, Tensor]] = [{} for _ in adjoints]
    refusals: list[dict[str, str]] = [{} for _ in adjoints]
    for turn in range(repeats + 1):
        for each, own, times, refused in zip(
            range(len(adjoints)), samplers, seconds, refusals, strict=True
        ):
            wanted = [name for name in variables if name not in refused]
            start = time.perf_counter()
            try:
                found[each] = gradients(own, metric, noise, cond, wanted).variables
            except InputError as error:
                if "noise" not in wanted or turn:
                    raise
                # Only a gradient of the noise is ever refused; the rest is asked for again.
                refused["noise"] = str(error)
                wanted.remove("noise")
                found[each] = gradients(own, metric, noise, cond, wanted).variables
            _wait(noise)
            if turn:
                times.append(time.perf_counter() - start)
    rows = []
    for each, (adjoint, own) in enumerate(zip(adjoints, samplers, strict=True)):
        cost = (own.stats.bytes_saved, own.stats.nfe_forward, own.stats.nfe_backward)
        for name in variables:
            accuracy = _accuracy(found[each].get(name), exact[name])
            took, why = statistics.median(seconds[each]), refusals[each].get(name, "")
            rows.append(Row(_label(adjoint), name, *accuracy, *cost, took, why))
    return Comparison(tuple(rows))


def default_adjoints() -> list[Adjoint]:
    """Every way to differentiate, the paper's release's (Euler, states solved again) included."""
    return [
        Backprop(),
        Checkpointed(),
        Truncated(last=1),
        Continuous(),
        Continuous(solver=Euler()),
        Continuous(solver=Euler(), trajectory="resolved"),
    ]


def _label(adjoint: Adjoint) -> str:
    """The adjoint as one would write it, without what it has by default."""
    usual = type(adjoint)()
    told = [f"{name}={value!r}" for name, value in vars(adjoint).items() if value != getattr(usual, name)]
    return f"{type(adjoint).__name__}({', '.join(told)})"


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
