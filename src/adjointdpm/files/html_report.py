"""One self-contained HTML page a run: images, videos, players, curves and tables, no file beside it, no network."""

import base64
import io
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Int16, UInt8
from torch import Tensor

from .atomic_write import write_file
from .films import film, strip
from .images import as_8_bit, output_folder, png, sheet
from .sounds import as_16_bit, wav

try:
    import jinja2
    import matplotlib as _  # noqa: F401  (drawn with later; half a second to import in full)
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"the tasks end in a page, which needs {error.name}; run pip install 'adjointdpm[report]'",
        name=error.name,
    ) from error

__all__ = ["FilmTable", "ImageTable", "Page", "SoundTable", "Table", "table_of"]

# Autoescaping is on: whatever a user typed (a prompt, a label) is text here, never markup.
_TEMPLATE = jinja2.Environment(autoescape=True).from_string("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ page.title }}</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">
<style>
 :root { color-scheme: light dark; --ink: #1b1f24; --soft: #57606a; --line: #d8dee4; --back: #fff; --code: #f1f3f5 }
 @media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --soft: #9da7b3; --line: #3d444d; --back: #0d1117; --code: #21262d } }
 body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem;
        color: var(--ink); background: var(--back) }
 h1 { font-size: 1.7rem; line-height: 1.25 }
 h2 { font-size: 1.25rem; margin-top: 2.5rem; border-top: 1px solid var(--line); padding-top: 1rem }
 a { color: inherit }
 .verdict { font-size: 1.1rem; border-left: 4px solid var(--soft); padding-left: .8rem }
 .facts { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; font-size: .9rem }
 .facts dt { color: var(--soft) } .facts dd { margin: 0; overflow-wrap: anywhere }
 .scroll { overflow-x: auto; margin: .8rem 0 }
 figure { margin: 0 }
 figcaption { font-size: .8rem; color: var(--soft); max-width: 8rem; margin: auto; overflow-wrap: anywhere }
 img.plot { max-width: 100%; background: #fff; border-radius: 6px }
 table { border-collapse: collapse; font-size: .9rem }
 th, td { padding: .25rem .7rem; text-align: left; border-bottom: 1px solid var(--line) }
 .numbers th button { all: unset; cursor: pointer } .numbers th button:focus-visible { outline: 2px solid }
 [aria-sort=ascending]::after { content: " \\2191" } [aria-sort=descending]::after { content: " \\2193" }
 .images th, .images td { border: 0; padding: .3rem; text-align: center; vertical-align: top }
 .images th { position: sticky; left: 0; min-width: 4rem; max-width: 6.5rem; font-weight: normal;
              background: var(--back); text-align: left; vertical-align: middle; overflow-wrap: break-word;
              hyphens: auto; font-size: .9rem }
 .images button { all: unset; cursor: zoom-in } .images button:focus-visible { outline: 2px solid }
 .images audio { width: 15rem; display: block }
 .images img { width: 8rem; display: block; image-rendering: pixelated; border-radius: 6px }
 @media (max-width: 40rem) {
  .numbers td { white-space: nowrap } .images img { width: 5.5rem } figcaption { max-width: 5.5rem } }
 dialog { border: 0; padding: 1rem; background: var(--back); color: var(--ink); text-align: center }
 dialog img { width: min(80vmin, 32rem); image-rendering: pixelated }
 dialog::backdrop { background: #000a }
 pre { background: var(--code); padding: .5rem .7rem; border-radius: 4px; font-size: .85rem;
       white-space: pre-wrap; overflow-wrap: anywhere }
 summary { cursor: pointer }
</style></head><body><main><h1>{{ page.title }}</h1>
{% if page.verdict %}<p class="verdict">{{ page.verdict }}</p>{% endif %}
{% if page.facts %}<dl class="facts">{% for name, value in page.facts.items() %}
 <dt>{{ name }}</dt><dd>{{ value }}</dd>{% endfor %}</dl>{% endif %}
{% for part in page.parts %}
 {%- if part.kind == "heading" %}<h2>{{ part.text }}</h2>
 {%- elif part.kind == "text" %}<p>{{ part.text }}</p>
 {%- elif part.kind == "code" %}<pre><code>{{ part.text }}</code></pre>
 {%- elif part.kind == "link" %}<p><a href="{{ part.target | urlencode }}">{{ part.text }}</a></p>
 {%- elif part.kind == "images" %}<div class="scroll" tabindex="0" role="region" aria-label="{{ part.what }}">
 <table class="images">{% for row in part.rows %}
 <tr><th scope="row">{{ row.name }}</th>
  {% for source, caption, still in row.items %}<td><figure>{% if row.kind == "sound" %}
  <audio controls preload="metadata" aria-label="{{ row.name }}: {{ caption }}" src="{{ source }}"></audio>
  {%- else %}<button aria-label="{{ row.name }}: {{ caption }}, larger">
  {% if still %}<picture><source srcset="{{ still }}" media="(prefers-reduced-motion: reduce)">{% endif -%}
  <img alt="{{ row.name }}: {{ caption }}" src="{{ source }}">{% if still %}</picture>{% endif %}</button>{% endif %}
  <figcaption>{{ caption }}</figcaption></figure></td>{% endfor %}</tr>{% endfor %}</table></div>
 {%- elif part.kind == "plot" %}<figure><img class="plot" alt="{{ part.text }}" src="{{ part.source }}">
  </figure>
 {%- elif part.kind == "values" %}<details><summary>{{ part.text }}</summary><dl class="facts">
 {% for name, value in part.named.items() %}<dt>{{ name }}</dt><dd>{{ value }}</dd>{% endfor %}</dl></details>
 {%- elif part.kind == "table" %}<div class="scroll" tabindex="0" role="region" aria-label="Table">
 <table class="numbers"><thead><tr>
 {% for h in part.head %}{% if h %}<th scope="col"><button title="Sort by this column">{{ h }}</button></th>
 {%- else %}<td></td>{% endif %}{% endfor %}</tr></thead><tbody>{% for row in part.rows %}<tr>
 {% for c in row %}<td>{{ c }}</td>{% endfor %}</tr>
 {% endfor %}</tbody></table></div>{% endif %}
{% endfor %}
</main><dialog></dialog>
<script type="module">
 const dialog = document.querySelector("dialog"), about = document.createElement("p");
 for (const image of document.querySelectorAll(".images img"))
  image.closest("button").onclick = () => {
   about.textContent = image.alt;
   dialog.replaceChildren((image.closest("picture") ?? image).cloneNode(true), about); dialog.showModal(); };
 dialog.onclick = () => dialog.close();
 for (const button of document.querySelectorAll(".numbers th button"))
  button.onclick = () => {
   const head = button.parentElement, table = head.closest("table"), body = table.tBodies[0];
   const sign = head.ariaSort === "ascending" ? -1 : 1, value = row => row.cells[head.cellIndex].textContent;
   for (const other of table.querySelectorAll("th")) other.ariaSort = null;
   head.ariaSort = sign > 0 ? "ascending" : "descending";
   const number = text => parseFloat(text.replaceAll(",", ""));
   body.append(...[...body.rows].sort((a, b) => sign * (number(value(a)) - number(value(b))
    || value(a).localeCompare(value(b), undefined, {numeric: true})))); };
</script></body></html>
""")


class Table(ABC):
    """A named row of what was made, with a caption each."""

    kind: ClassVar[str]
    name: str
    captions: Sequence[str]

    @property
    @abstractmethod
    def items(self) -> list[tuple[str, str, str]]:
        """Source and caption of each, and the source of a still image to show in place of a moving one; "" for none."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Save each in a file of its own, with all that it has.

        Raises:
            SavingError: the disk is full, or the folder cannot be written.
        """

    def path(self, folder: Path, number: int, suffix: str) -> Path:
        """Return the path of a file in a folder, which is made if need be; sorted names are in the row's order."""
        folder = output_folder(folder)
        prefix = f"{self.name.replace(' ', '-')}-" if self.name else ""
        return folder / f"{prefix}{number:05}.{suffix}"


@dataclass(frozen=True, eq=False)
class ImageTable(Table):
    """A row of small images."""

    kind: ClassVar[str] = "image"
    name: str
    images: UInt8[Tensor, "batch c h w"]
    captions: Sequence[str]

    @property
    def items(self) -> list[tuple[str, str, str]]:
        return [(_source(png(i)), c, "") for i, c in zip(self.images, self.captions, strict=True)]

    def save(self, folder: Path) -> None:
        for number, image in enumerate(self.images):
            write_file(self.path(folder, number, "png"), png(image))


@dataclass(frozen=True, eq=False)
class FilmTable(Table):
    """A row of small videos, which stand still for those who ask their system for less motion."""

    kind: ClassVar[str] = "film"
    name: str
    videos: UInt8[Tensor, "batch frames c h w"]
    captions: Sequence[str]
    rate: float

    @property
    def items(self) -> list[tuple[str, str, str]]:
        sources = [(_source(strip(v, self.rate), "image/webp"), _source(png(v[0]))) for v in self.videos]
        return [
            (moving, caption, still)
            for (moving, still), caption in zip(sources, self.captions, strict=True)
        ]

    def save(self, folder: Path) -> None:
        for number, video in enumerate(self.videos):
            write_file(self.path(folder, number, "webp"), film(video, self.rate))


@dataclass(frozen=True, eq=False)
class SoundTable(Table):
    """A row of players."""

    kind: ClassVar[str] = "sound"
    name: str
    waveforms: Int16[Tensor, "batch c n"]
    captions: Sequence[str]
    rate: float

    @property
    def items(self) -> list[tuple[str, str, str]]:
        sources = [_source(wav(each, self.rate), "audio/wav") for each in self.waveforms]
        return [(source, caption, "") for source, caption in zip(sources, self.captions, strict=True)]

    def save(self, folder: Path) -> None:
        for number, waveform in enumerate(self.waveforms):
            write_file(self.path(folder, number, "wav"), wav(waveform, self.rate))


def table_of(name: str, samples: Tensor, captions: Sequence[str], rate: float | None) -> Table:
    """Return the row of what a sampler made.

    Args:
        name: the row's name.
        samples: images (batch, channels, height, width), videos (batch, frames, channels, height, width) or waveforms
            (batch, channels, samples); rounded here, or uint8 and int16 already.
        captions: one for each.
        rate: frames or samples in a second; None for images.

    Returns:
        an `ImageTable`, `FilmTable` or `SoundTable`.
    """
    sound = rate is not None and samples.ndim == 3
    if samples.is_floating_point():
        samples = as_16_bit(samples) if sound else as_8_bit(samples)
    if rate is None:
        return ImageTable(name, samples, captions)
    return (SoundTable if sound else FilmTable)(name, samples, captions, rate)


@dataclass
class Page:
    """A page under construction; each method adds a part, `write` makes the file.

    title    what the page is of
    verdict  what was found, in whole sentences; it stands on top
    facts    what it was found with, by name, such as the model and the date; they stand below the verdict
    """

    title: str
    verdict: str = ""
    facts: dict[str, str] = field(default_factory=dict)
    parts: list[dict[str, Any]] = field(default_factory=list)

    def heading(self, text: str) -> None:
        """A heading."""
        self.parts.append({"kind": "heading", "text": text})

    def text(self, text: str) -> None:
        """A paragraph."""
        self.parts.append({"kind": "text", "text": text})

    def code(self, text: str) -> None:
        """A command or an expression, of one line or several."""
        self.parts.append({"kind": "code", "text": text})

    def link(self, text: str, target: str) -> None:
        """A link to a file; `target` is its path from the page's folder."""
        self.parts.append({"kind": "link", "text": text, "target": target})

    def images(self, *rows: Table, file: Path | None = None) -> None:
        """Rows of images, videos or sound.

        Args:
            rows: of equally many images, if they are to be saved.
            file: where all images are saved as one PNG file, too; videos and sounds are saved in a folder of that name
                without its suffix, each in a file of its own. None for nowhere.

        Raises:
            SavingError: the disk is full, or the file cannot be written.
        """
        what = {"image": "Images", "film": "Videos", "sound": "Sounds"}[rows[0].kind]
        self.parts.append({"kind": "images", "rows": rows, "what": what})
        if file is None:
            return
        images = [row.images for row in rows if isinstance(row, ImageTable)]
        if images:
            write_file(file, png(sheet(torch.cat(images), len(images[0]))))
        for row in rows:
            if not isinstance(row, ImageTable):
                row.save(file.with_suffix(""))

    def values(self, text: str, values: Mapping[str, str]) -> None:
        """Values by name, which open on a click on a text."""
        self.parts.append({"kind": "values", "text": text, "named": dict(values)})

    def plot(self, text: str, content: bytes) -> None:
        """A plot as the content of a PNG file; the text describes it."""
        self.parts.append({"kind": "plot", "text": text, "source": _source(content)})

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
        from matplotlib.ticker import MaxNLocator

        figure = Figure(figsize=(6, 2.2), layout="constrained", dpi=110)
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        for name, line in values.items():
            axes.plot(at, line, label=name, marker="o" if len(at) < 12 else "")
        if any(values):
            axes.legend(frameon=False)
        axes.set(xlabel=x, ylabel=y)
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(integer=all(float(each).is_integer() for each in at)))
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", bbox_inches="tight")
        self.plot(f"{y} against {x}", buffer.getvalue())

    def write(self, path: Path) -> Path:
        """Return the path of the page, after it was written.

        Raises:
            SavingError: the disk is full, or the folder cannot be written; an earlier page is intact.
        """
        write_file(path, _TEMPLATE.render(page=self).encode("utf-8", "backslashreplace"))
        return path


def _source(content: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64," + base64.b64encode(content).decode()
