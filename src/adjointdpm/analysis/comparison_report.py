"""The result of a comparison of gradients: rows, profiles along the trajectory, checks, and a recommendation.

relative_error = |g - g*| / |g*|,   cosine = g . g* / (|g| |g*|),   norm_ratio = |g| / |g*|
"""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from .._types import InputError
from ..files.atomic_write import write_file
from .finite_difference import Check

__all__ = ["Comparison", "Profile", "Row"]

ACCURATE = 0.99
"""The least cosine, over all variables, that a recommended gradient has."""


@dataclass(frozen=True)
class Row:
    """One adjoint's gradient g of one variable, compared with the exact one g*.

    The three accuracies are None where the adjoint refuses this variable; `refusal` then gives the reason.

    Args:
        adjoint: the adjoint's expression in Python.
        variable: "noise", a name of the conditioning, or "weights".
        relative_error: |g - g*| / |g*|.
        cosine: g . g* / (|g| |g*|), -1 to 1.
        norm_ratio: |g| / |g*|.
        bytes_saved: bytes saved for the backward pass at its peak; None where torch cannot count them.
        nfe_forward: number of denoiser calls.
        nfe_backward: number of denoiser calls differentiated.
        seconds: time of the forward and the backward pass for all variables together, the median of the rounds.
        refusal: why the adjoint refuses the variable; empty where it does not.
        peak_bytes: the device's own peak during one gradient; None on a CPU.
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
    peak_bytes: int | None = None


@dataclass(frozen=True)
class Profile:
    """The gradient along the trajectory and its error for one adjoint, from the clean end to the noise.

    Args:
        adjoint: the adjoint's expression in Python.
        times: t of each node that the backward pass visits.
        norms: |dL/dz| at each node.
        errors: |dL/dz - exact| / |exact| at each node; None at nodes that the sampling did not visit.
    """

    adjoint: str
    times: tuple[float, ...]
    norms: tuple[float, ...]
    errors: tuple[float | None, ...]


@dataclass(frozen=True)
class Comparison:
    """The result of `compare`; `print(comparison)` shows a table, the checks and a recommendation.

    Args:
        rows: one for each adjoint and variable.
        profiles: one for each adjoint whose backward pass visits nodes.
        checks: the exact gradient against finite differences, one for each variable.
        free_bytes: memory that was free on the device; None where the system does not report it.

    Examples:
        >>> from adjointdpm.analysis.comparison_report import Comparison, Row
        >>> row = Row("Checkpointed()", "noise", 0.0, 1.0, 1.0, 2_000_000, 20, 10, 0.5)
        >>> Comparison((row,)).recommendation
        'Use Checkpointed(): its error is 0e+00 and nothing exact is faster, in 2.0 MB.'
    """

    rows: tuple[Row, ...]
    profiles: tuple[Profile, ...] = ()
    checks: tuple[Check, ...] = ()
    free_bytes: int | None = None

    def as_dicts(self) -> list[dict[str, object]]:
        """Return the rows as plain dictionaries, for a table of your own.

        Returns:
            one dictionary for each row, with the fields of `Row`.
        """
        return [asdict(row) for row in self.rows]

    def to_json(self) -> str:
        """Write rows, checks, profiles and the recommendation as JSON.

        Returns:
            the text of one JSON object, with a newline at its end.
        """
        checks = [
            asdict(check) | {"agrees": check.agrees, "verdict": check.verdict} for check in self.checks
        ]
        profiles = [asdict(profile) for profile in self.profiles]
        found = {"rows": self.as_dicts(), "checks": checks, "profiles": profiles}
        return json.dumps(found | {"recommendation": self.recommendation}, indent=1) + "\n"

    def to_csv(self) -> str:
        """Write the rows as CSV, with the names of `Row`'s fields as the first line.

        Returns:
            the text.
        """
        text = io.StringIO()
        writer = csv.DictWriter(text, [each.name for each in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.as_dicts())
        return text.getvalue()

    def cells(self) -> list[tuple[str, ...]]:
        """Return the table as text.

        Returns:
            the heads, then the cells of each row.
        """
        return [_HEAD, *(_cells(row) for row in self.rows)]

    @property
    def confirmations(self) -> list[str]:
        """What finite differences say of the exact gradient, one line a variable."""
        lines = []
        for check in self.checks:
            measured = f"{check.measured:.5g} +- {check.uncertainty:.1g}, "
            lines.append(
                f"finite differences, {check.variable}: {'' if check.reason else measured}exact gradient "
                f"{check.predicted:.5g}: {_VERDICTS[check.verdict]}{f', since {check.reason}' if check.reason else ''}"
            )
        return lines

    @property
    def recommendation(self) -> str:
        """Which adjoint to use here, and how far finite differences confirm it, in whole sentences.

        It is the fastest of the exact ones that have a gradient of every variable and fit in half of the free memory.
        A cheaper one whose cosine is at least 0.99 in each variable is named beside it and not recommended: on
        another noise it may be far off, without a sign of it in the run.
        """
        return f"{self._confirmed}{self._chosen}"

    @property
    def _confirmed(self) -> str:
        """A sentence where finite differences contradict the exact gradient, or do not confirm it."""
        against, open_ = (
            ", ".join(check.variable for check in self.checks if check.verdict == verdict)
            for verdict in ("does not agree", "could not be decided")
        )
        if against:
            return (
                f"Finite differences contradict the gradient that counts as exact here ({against}): find out why "
                "before you use any. "
            )
        return f"Finite differences could not confirm the exact gradient of {open_}. " if open_ else ""

    @property
    def _chosen(self) -> str:
        found = [each for each in map(self._judged, _names(self.rows)) if each is not None]
        fits = [each for each in found if self.free_bytes is None or 2 * each.held <= self.free_bytes]
        exact = [each for each in fits if each.error < 1e-3]
        if not exact:
            return (
                "Use Checkpointed() in smaller parts (split_guidance=True, a smaller batch): no exact method fits in "
                "half of the free memory."
            )
        best = min(exact, key=lambda each: each.seconds)
        says = (
            f"Use {best.adjoint}: its error is {best.error:.0e} and nothing exact is faster, in "
            f"{best.held / 1e6:.1f} MB."
        )
        fastest = min(fits, key=lambda each: each.seconds)
        if fastest.seconds <= 0.9 * best.seconds:
            says += (
                f" On this noise {fastest.adjoint} has a cosine of {fastest.cosine:.3f} or better in "
                f"{fastest.seconds / best.seconds:.2f} of the time; on another it may be far off, so compare it on "
                "several."
            )
        return says

    def _judged(self, adjoint: str) -> "_Judged | None":
        rows = [row for row in self.rows if row.adjoint == adjoint]
        errors = [row.relative_error for row in rows if row.relative_error is not None]
        cosines = [row.cosine for row in rows if row.cosine is not None]
        if len(errors) < len(rows) or min(cosines) < ACCURATE:
            return None
        return _Judged(adjoint, max(errors), min(cosines), rows[0].bytes_saved or 0, rows[0].seconds)

    def plot(self, path: Path | str) -> Path:
        """Write an image with three plots: error against seconds, and error and norm along the trajectory.

        It needs matplotlib, of the extra `report`.

        Args:
            path: the file; its suffix is the format, PNG without one. Its folder is made if it does not exist.

        Returns:
            the path.

        Raises:
            InputError: the file cannot be written.
        """
        from matplotlib.figure import Figure  # here, since it takes a second to import

        figure = Figure(figsize=(12, 4), layout="constrained")
        cost, error, norm = figure.subplots(1, 3)
        for variable in dict.fromkeys(row.variable for row in self.rows):
            rows = [row for row in self.rows if row.variable == variable and row.relative_error is not None]
            y = [max(row.relative_error or 0, 1e-8) for row in rows]
            cost.scatter([row.seconds for row in rows], y, label=variable)
        for row in {row.adjoint: row for row in self.rows if row.relative_error is not None}.values():
            at = (row.seconds, max(row.relative_error or 0, 1e-8))
            cost.annotate(row.adjoint, at, fontsize=6, xytext=(3, 3), textcoords="offset points")
        for profile in self.profiles:
            norm.plot(profile.times, profile.norms, label=profile.adjoint, linewidth=1)
            known = [(t, e) for t, e in zip(profile.times, profile.errors, strict=True) if e]
            if known:
                error.plot(*zip(*known, strict=True), label=profile.adjoint, linewidth=1)
        cost.set(xlabel="seconds", ylabel="relative error (1e-8: none)", yscale="log")
        error.set(xlabel="t (noise at the right)", ylabel="error of dL/dz", yscale="log")
        norm.set(xlabel="t (noise at the right)", ylabel="|dL/dz|", yscale="log")
        for axes in (cost, error, norm):
            if axes.get_legend_handles_labels()[0]:
                axes.legend(fontsize=6)
        path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            raise InputError(f"cannot write {path}: {problem.strerror}; give another file") from problem
        content = io.BytesIO()
        figure.savefig(content, dpi=120, format=path.suffix[1:] or "png")
        write_file(path, content.getvalue())
        return path

    def __str__(self) -> str:
        lines = self.cells()
        widths = [max(len(line[i]) for line in lines) for i in range(len(_HEAD))]
        table = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in lines
        ]
        return "\n".join([*table, *self.confirmations, self.recommendation])


@dataclass(frozen=True)
class _Judged:
    """An adjoint's accuracy at its worst variable, and its cost."""

    adjoint: str
    error: float
    cosine: float
    held: int
    seconds: float


_VERDICTS = {
    "agrees": "agrees",
    "does not agree": "DOES NOT AGREE",
    "could not be decided": "could not be decided",
}
_HEAD = ("adjoint", "variable", "error", "cosine", "norm", "MB saved", "calls f/b", "seconds")


def _names(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row.adjoint for row in rows))


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
