"""What the page draws: images, maps and curves as HTML without files, in the page's own colors, light or dark.

Whatever a person typed is escaped.
"""

import base64
from collections.abc import Mapping, Sequence
from html import escape

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ..files.images import png

__all__ = ["colored", "curve", "figures", "image", "images", "status"]

# Dark violet, purple, orange, yellow: brighter is larger, for all eyes and in grey, too.
_STOPS = ((0.0, 0.0, 0.02), (0.34, 0.06, 0.43), (0.87, 0.32, 0.23), (0.99, 0.75, 0.15), (0.99, 1.0, 0.64))


def colored(values: Float[Tensor, "h w"]) -> UInt8[Tensor, "3 h w"]:
    """Return a map of values in [0, 1] as an image, from dark (0) over orange to yellow (1)."""
    stops = torch.tensor(_STOPS)
    place = values.clamp(0, 1) * (len(stops) - 1)
    low = place.floor().long().clamp(max=len(stops) - 2)
    part = (place - low).unsqueeze(-1)
    color = (1 - part) * stops[low] + part * stops[low + 1]
    return (color.permute(2, 0, 1) * 255).round().to(torch.uint8)


def image(content: UInt8[Tensor, "3 h w"], caption: str) -> str:
    """Return a figure of one image."""
    source = "data:image/png;base64," + base64.b64encode(png(content)).decode()
    text = escape(caption)
    return f'<figure><img src="{source}" alt="{text}"><figcaption>{text}</figcaption></figure>'


def images(named: Mapping[str, UInt8[Tensor, "3 h w"]]) -> str:
    """Return figures of images by their captions, side by side."""
    return f'<div class="images">{"".join(image(each, name) for name, each in named.items())}</div>'


def curve(values: Sequence[float], steps: int) -> str:
    """Return the curve of a metric over the steps of a run.

    Args:
        values: one after the other from step 0.
        steps: of the whole run, so that the curve grows to the right; at least 1.
    """
    if not values:
        return ""
    low, high = min(values), max(values)
    middle, span = (low + high) / 2, max(high - low, 1e-6 * max(abs(low), abs(high), 1e-6))
    wide, tall, left, top = 490, 170, 92, 12

    def at(step: int, value: float) -> tuple[float, float]:
        return left + wide * step / max(1, steps), top + tall * (0.5 - 0.9 * (value - middle) / span)

    points = [at(step, value) for step, value in enumerate(values)]
    best = min(range(len(values)), key=values.__getitem__)
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    (x_best, y_best), (x_now, y_now) = points[best], points[-1]
    ticks = [(high, at(0, high)[1]), (low, at(0, low)[1])] if high > low else [(low, at(0, low)[1])]
    rows = "".join(
        f'<line class="grid" x1="{left}" x2="{left + wide}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text x="{left - 8}" y="{y + 5:.1f}" text-anchor="end">{value:.3g}</text>'
        for value, y in ticks
    )
    said = f"metric {values[0]:.3g} at step 0, {values[-1]:.3g} at step {len(values) - 1} of {steps}"
    return (
        f'<svg class="curve" viewBox="0 0 600 232" role="img" aria-label="{said}"><title>{said}</title>{rows}'
        f'<line class="axis" x1="{left}" x2="{left + wide}" y1="{top + tall}" y2="{top + tall}"/>'
        f'<text x="{left}" y="{top + tall + 20}" text-anchor="middle">0</text>'
        f'<text x="{left + wide}" y="{top + tall + 20}" text-anchor="middle">{steps}</text>'
        f'<text x="{left + wide / 2}" y="{top + tall + 40}" text-anchor="middle">'
        f"metric over optimization steps; lowest: {values[best]:.3g}</text>"
        f'<polyline points="{line}"/><circle class="now" cx="{x_now:.1f}" cy="{y_now:.1f}" r="5"/>'
        f'<circle class="best" cx="{x_best:.1f}" cy="{y_best:.1f}" r="8"/></svg>'
    )


def figures(named: Mapping[str, str]) -> str:
    """Return figures with their names, side by side."""
    rows = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in named.items())
    return f'<dl class="figures">{rows}</dl>'


def status(text: str, kind: str = "", share: float | None = None) -> str:
    """Return the line that says what happens.

    Args:
        text: the line.
        kind: running, done, failed, or nothing.
        share: how much is done, 0 to 1; None for no bar.
    """
    bar = "" if share is None else f'<div class="bar"><i style="width:{100 * share:.0f}%"></i></div>'
    return f'<div class="status {kind}" role="status">{escape(text)}{bar}</div>'
