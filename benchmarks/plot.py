"""Figures of the benchmarks: panels of curves, as PNG."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

__all__ = ["Panel", "draw"]

Curve = tuple[Sequence[float], Sequence[float]]


@dataclass(frozen=True)
class Panel:
    """Curves over one pair of axes; `marks` are lone points with their names beside them."""

    x: str
    y: str
    curves: Mapping[str, Curve]
    marks: Mapping[str, tuple[float, float]] | None = None
    scales: tuple[str, str] = ("log", "log")


def draw(path: Path, panels: Sequence[Panel], columns: int = 3) -> None:
    """Panels in rows of so many; the first one has the legend."""
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.6 * rows), layout="constrained")
    for i, panel in enumerate(panels):
        axes = figure.add_subplot(rows, columns, i + 1)
        for name, (x, y) in panel.curves.items():
            axes.plot(x, y, marker="o", markersize=3, label=name)
        known = [each for x, _ in panel.curves.values() for each in x]
        known += [x for x, _ in (panel.marks or {}).values()]
        for number, (name, (x, y)) in enumerate((panel.marks or {}).items()):
            axes.plot([x], [y], "k.", markersize=5)
            below = number % 2 == 1  # neighbours in the list are often neighbours in the plot
            right = x > max(known) / 2 + min(known) / 2  # a name stays inside
            place = {
                "xytext": (-4 if right else 4, -10 if below else 4),
                "ha": "right" if right else "left",
            }
            axes.annotate(name, (x, y), textcoords="offset points", fontsize=7, **place)
        axes.set(xlabel=panel.x, ylabel=panel.y, xscale=panel.scales[0], yscale=panel.scales[1])
        axes.margins(0.08, 0.1)
        axes.grid(alpha=0.3)
        if not i and panel.curves:
            axes.legend(fontsize=7, frameon=False)
    figure.savefig(path, dpi=110)
