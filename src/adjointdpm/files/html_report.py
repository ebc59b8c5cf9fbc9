"""One self-contained HTML page a run: images, curves and tables, no file beside it, no network."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from .atomic_write import write_file
from .images import png, sheet

try:
    import jinja2
    import matplotlib as _  # noqa: F401  (drawn with later; half a second to import in full)
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"the tasks end in a page, which needs {error.name}; run pip install 'adjointdpm[report]'",
        name=error.name,
    ) from error

__all__ = ["ImageTable", "Page"]

# Autoescaping is on: whatever a user typed (a prompt, a label) is text here, never markup.
_TEMPLATE = jinja2.Environment(autoescape=True).from_string("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ page.title }}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
 body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem;
        color: #1b1f24; background: #fff }
 h1 { font-size: 1.7rem } h2 { font-size: 1.25rem; margin-top: 2.5rem; border-top: 1px solid #d8dee4;
        padding-top: 1rem }
 .row { display: flex; flex-wrap: wrap; gap: .6rem; align-items: flex-start; margin: .5rem 0 }
 figure { margin: 0; text-align: center; font-size: .8rem; color: #57606a }
 .row figure { width: 8rem }
 .name { width: 6.5rem; font-size: .9rem; align-self: center }
 img.pixels { width: 8rem; height: 8rem; image-rendering: pixelated; border-radius: 6px }
 img.plot { max-width: 100% }
 table { border-collapse: collapse; font-size: .9rem; margin: .8rem 0 }
 th, td { padding: .25rem .7rem; text-align: left; border-bottom: 1px solid #d8dee4 }
 code { background: #f1f3f5; padding: .1rem .3rem; border-radius: 4px }
</style></head><body><h1>{{ page.title }}</h1>
{% for part in page.parts %}
 {%- if part.kind == "heading" %}<h2>{{ part.text }}</h2>
 {%- elif part.kind == "text" %}<p>{{ part.text }}</p>
 {%- elif part.kind == "code" %}<p><code>{{ part.text }}</code></p>
 {%- elif part.kind == "link" %}<p><a href="{{ part.target | urlencode }}">{{ part.text }}</a></p>
 {%- elif part.kind == "images" %}{% for row in part.rows %}
 <div class="row"><span class="name">{{ row.name }}</span>
  {% for source, caption in row.items %}<figure><img class="pixels" alt="{{ caption }}" src="{{ source }}">
  <figcaption>{{ caption }}</figcaption></figure>{% endfor %}</div>{% endfor %}
 {%- elif part.kind == "plot" %}<figure><img class="plot" alt="{{ part.text }}" src="{{ part.source }}">
  </figure>
 {%- elif part.kind == "table" %}<table><thead><tr>{% for h in part.head %}<th>{{ h }}</th>{% endfor %}</tr>
 </thead><tbody>{% for row in part.rows %}<tr>{% for c in row %}<td>{{ c }}</td>{% endfor %}</tr>
 {% endfor %}</tbody></table>{% endif %}
{% endfor %}</body></html>
""")


@dataclass(frozen=True, eq=False)
class ImageTable:
    """A named row of small images with a caption each."""

    name: str
    images: UInt8[Tensor, "batch c h w"]
    captions: Sequence[str]

    @property
    def items(self) -> list[tuple[str, str]]:
        """Source and caption of each image."""
        return [(_source(png(i)), c) for i, c in zip(self.images, self.captions, strict=True)]


@dataclass
class Page:
    """A page under construction; each method adds a part, `write` makes the file."""

    title: str
    parts: list[dict[str, Any]] = field(default_factory=list)

    def heading(self, text: str) -> None:
        """A heading."""
        self.parts.append({"kind": "heading", "text": text})

    def text(self, text: str) -> None:
        """A paragraph."""
        self.parts.append({"kind": "text", "text": text})

    def code(self, text: str) -> None:
        """A command or an expression."""
        self.parts.append({"kind": "code", "text": text})

    def link(self, text: str, target: str) -> None:
        """A link to a file; `target` is its path from the page's folder."""
        self.parts.append({"kind": "link", "text": text, "target": target})

    def images(self, *rows: ImageTable, file: Path | None = None) -> None:
        """Rows of images.

        Args:
            rows: of equally many images, if they are to be saved.
            file: where all of them are saved as one PNG file, too; None for nowhere.

        Raises:
            SavingError: the disk is full, or the file cannot be written.
        """
        self.parts.append({"kind": "images", "rows": rows})
        if file is not None:
            write_file(file, png(sheet(torch.cat([row.images for row in rows]), len(rows[0].images))))

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table of text."""
        self.parts.append({"kind": "table", "head": head, "rows": rows})

    def curve(self, values: Sequence[float], x: str, y: str) -> None:
        """A curve of one value a step."""
        self.lines([float(i) for i in range(len(values))], {"": values}, x, y)

    def lines(self, at: Sequence[float], values: Mapping[str, Sequence[float]], x: str, y: str) -> None:
        """Named curves over the same points."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # half a second to import
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6, 2.2), layout="constrained", dpi=110)
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        for name, line in values.items():
            axes.plot(at, line, label=name, marker="o" if len(at) < 12 else "")
        if any(values):
            axes.legend(frameon=False)
        axes.set(xlabel=x, ylabel=y)
        axes.spines[["top", "right"]].set_visible(False)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        source = _source(buffer.getvalue())
        self.parts.append({"kind": "plot", "source": source, "text": f"{y} against {x}"})

    def write(self, path: Path) -> Path:
        """Return the path of the page, after it was written.

        Raises:
            SavingError: the disk is full, or the folder cannot be written; an earlier page is intact.
        """
        write_file(path, _TEMPLATE.render(page=self).encode("utf-8", "backslashreplace"))
        return path


def _source(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode()
