"""The page: what is chosen on the left, what happens on the right. gradio's blocks and nothing else.

Nothing on it is loaded from elsewhere: fonts are the system's, images and curves are part of the page.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from .._types import InputError
from ..files.images import as_8_bit, read_image
from .choice import ADJOINTS, LEARNING_RATES, Choice, colour_metric, number, whole
from .drawing import colored, curve, figures, images, status
from .jobs import Finished, First, Progress
from .run import Failed, Loading, Session, Studio, Waiting
from .upload import MOST_BYTES, kept_image

__all__ = ["CSS", "blocks", "theme"]

CSS = (Path(__file__).parent / "page.css").read_text()

_ARTEFACTS = {"noise": "the noise", "token": "the token", "lora": "the LoRA"}
_MAPS = {
    "image": "Image: where changing a pixel changes the metric",
    "noise": "Noise: the same, back through all sampling steps",
}
_OURS = 'The bundled model knows 234 things, such as "a pixel art car on a blue background".'
_EXPECT = """<ol class="expect"><li>Here the image changes, beside the one without any optimization.</li>
<li>The metric's curve falls.</li><li>A map shows where the gradient is large.</li>
<li>At the end a slider compares before and after, and what was learned can be downloaded.</li></ol>"""
_HIDDEN: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}


def theme() -> Any:
    """Return the page's theme, with the system's own fonts."""
    return gr.themes.Default(
        primary_hue="orange",
        neutral_hue="slate",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )


def blocks(studio: Studio, bundled: bool) -> gr.Blocks:
    """Return the page of a studio.

    Args:
        studio: does the work.
        bundled: whether its model is the bundled one, whose prompts are of one form.
    """
    return _Page(studio, bundled).blocks


class _Page:
    """The components, and what happens when they are used."""

    def __init__(self, studio: Studio, bundled: bool) -> None:
        self.studio, self.bundled, self.sessions = studio, bundled, dict[str, Session]()
        model = studio.model
        kinds = {
            "colour": ("Background color", True),
            "label": ("Label of a classifier", bool(model.labels)),
            "style": ("Style of an image", model.has_features),
            "text": ("Any text (CLIP)", model.has_clip),
        }
        kinds |= {f"own:{i}": (text, True) for i, text in enumerate(model.metrics)}
        self.kinds = [(name, kind) for kind, (name, there) in kinds.items() if there]
        self.missing = [
            text
            for there, text in (
                (model.labels, "To reach a label, start the studio with --classifier NAME."),
                (
                    model.has_features,
                    "To reach the style of an image, start the studio with --features CLASSIFIER.",
                ),
                (model.has_clip, "To reach any text, start the studio with --clip_model FOLDER_OR_NAME."),
            )
            if not there
        ]
        with gr.Blocks(title="adjointdpm studio", analytics_enabled=False, fill_width=True) as self.blocks:
            self._layout()
            self._events()

    def _layout(self) -> None:
        model = self.studio.model
        gr.HTML(
            "<h1>Watch a gradient work</h1><p>A diffusion model turns noise and a prompt into an image. You say what "
            "the <em>finished</em> image should become; the gradient of that wish flows back through every sampling "
            "step to the noise, a token or a LoRA, and changes it, step by step.</p>",
            elem_id="head",
        )
        with gr.Row(elem_id="columns"):
            with gr.Column(scale=2, min_width=320):
                self.prompt = gr.Textbox(
                    "a cat" if self.bundled else "a photo of a cat",
                    label="1. Prompt",
                    info=_OURS if self.bundled else None,
                    max_length=400,
                    elem_id="prompt",
                )
                self.variable = gr.Radio(
                    [
                        ("Noise: one image", "noise"),
                        ("Token: a new word", "token"),
                        ("LoRA: the model's weights", "lora"),
                    ],
                    value="noise",
                    label="2. What is optimized",
                    elem_id="variable",
                )
                self.other = gr.Textbox(
                    "a car" if self.bundled else "a photo of a car",
                    label="Another prompt, to try the result on",
                    info="Nothing is trained on it; its images are on the page that you can download.",
                    max_length=400,
                    visible=False,
                    elem_id="other",
                )
                self.kind = gr.Radio(
                    self.kinds,
                    value=self.kinds[0][1],
                    label="3. What the image should become",
                    elem_id="metric",
                )
                first = self.kinds[0][1]
                self.label = gr.Dropdown(
                    list(model.labels),
                    value="dog" if "dog" in model.labels else next(iter(model.labels), None),
                    label="Label to reach",
                    visible=first == "label",
                    elem_id="label",
                )
                self.colour = gr.ColorPicker(
                    "#2f6fe0", label="Color to reach", visible=first == "colour", elem_id="colour"
                )
                with gr.Column(visible=first == "style") as self.style:
                    self.upload = gr.File(
                        label=f"Image (up to {MOST_BYTES >> 20} MiB)",
                        file_types=[".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"],
                        height=120,
                        elem_id="upload",
                    )
                    self.preview = gr.HTML(elem_id="preview")
                self.text = gr.Textbox(
                    label="Text", max_length=400, visible=first == "text", placeholder="a photo at night",
                    elem_id="text",
                )  # fmt: skip
                if self.missing:
                    gr.HTML(f'<p class="note">{" ".join(self.missing)}</p>')
                self.steps = gr.Slider(
                    1, 100, 12, step=1, label="4. Steps of the optimization", elem_id="steps"
                )
                self.adjoint = gr.Dropdown(
                    [(text, name) for name, text in ADJOINTS.items()],
                    value="checkpointed",
                    label="5. Adjoint: how the gradient is made",
                    info="All but the last two are exact; they differ in memory and time.",
                    elem_id="adjoint",
                )
                with gr.Accordion("More settings", open=False):
                    self.sampling_steps = gr.Slider(
                        2, 50, 10, step=1, label="Sampling steps: the gradient goes through all of them"
                    )
                    self.rate = gr.Number(LEARNING_RATES["noise"], label="Step length (learning rate)")
                    self.seed = gr.Number(0, label="Seed of the noise", precision=0)
                with gr.Row():
                    self.start = gr.Button("Run", variant="primary", elem_id="run", min_width=120)
                    self.halt = gr.Button("Stop", interactive=False, elem_id="stop", min_width=120)
            with gr.Column(scale=3, min_width=320):
                self.status = gr.HTML(
                    status(f"Ready. The model is {model.name}. Press Run."), elem_id="status"
                )
                with gr.Row():
                    with gr.Column(scale=1, min_width=280):
                        self.live = gr.HTML(_EXPECT, elem_id="live")
                    with gr.Column(scale=1, min_width=280):
                        self.curve = gr.HTML(elem_id="curve")
                self.figures = gr.HTML(elem_id="figures")
                self.maps = gr.HTML(elem_id="maps")
                with gr.Column(visible=False, elem_id="result") as self.result:
                    self.slider = gr.ImageSlider(
                        label="Before and after: move the slider", interactive=False, format="png",
                        elem_id="slider", buttons=["fullscreen"], max_height=420,
                    )  # fmt: skip
                    with gr.Row():
                        self.artefact = gr.DownloadButton("Download", elem_id="artefact", min_width=140)
                        self.report = gr.DownloadButton(
                            "Download the page", elem_id="report", min_width=140
                        )
                    self.command = gr.Textbox(
                        label="The same on the command line", interactive=False, lines=3, buttons=["copy"],
                        elem_id="command",
                    )  # fmt: skip

    def _events(self) -> None:
        self.variable.change(self._variable, self.variable, [self.other, self.rate], **_HIDDEN)
        self.kind.change(self._kind, self.kind, [self.label, self.colour, self.style, self.text], **_HIDDEN)
        self.upload.upload(self._uploaded, self.upload, self.preview, **_HIDDEN)
        self.upload.clear(self._cleared, None, self.preview, **_HIDDEN)
        chosen = [
            self.prompt, self.other, self.variable, self.kind, self.label, self.colour, self.text, self.steps,
            self.sampling_steps, self.adjoint, self.rate, self.seed,
        ]  # fmt: skip
        shown = [
            self.status, self.live, self.curve, self.figures, self.maps, self.result, self.slider, self.artefact,
            self.report, self.command, self.start, self.halt,
        ]  # fmt: skip
        self.start.click(
            self._run,
            chosen,
            shown,
            show_progress="hidden",
            api_visibility="private",
            concurrency_limit=None,  # The studio has a line of its own, in which a place is shown and left at once.
        )
        self.halt.click(self._stop, None, [self.status, self.halt], **_HIDDEN)
        self.blocks.unload(self._closed)

    def _session(self, request: gr.Request) -> Session:
        name = str(request.session_hash)
        if name not in self.sessions:
            self.sessions[name] = self.studio.session()
        return self.sessions[name]

    def _variable(self, variable: str) -> tuple[Any, Any]:
        return gr.update(visible=variable != "noise"), LEARNING_RATES[variable]

    def _kind(self, kind: str) -> tuple[Any, ...]:
        return tuple(gr.update(visible=kind == each) for each in ("label", "colour", "style", "text"))

    def _uploaded(self, path: str, request: gr.Request) -> str:
        session = self._session(request)
        session.reference, session.uploads = None, session.uploads + 1
        place = session.folder / f"reference-{session.uploads}.png"
        try:
            kept = kept_image(Path(path), place)
        except InputError as error:
            return status(str(error).replace(path, "that you uploaded"), "failed")
        session.reference = place
        return images({"The metric compares styles with this image.": kept})

    def _cleared(self, request: gr.Request) -> str:
        self._session(request).reference = None
        return ""

    def _metric(self, session: Session, kind: str, label: str, colour: str, text: str) -> tuple[str, ...]:
        """Return the metric that was chosen, as of `--metric`.

        Raises:
            InputError: something is missing.
        """
        if kind == "label" and label in self.studio.model.labels:
            return (f"label:{label}",)
        if kind == "colour":
            return (colour_metric(colour),)
        if kind == "style":
            if session.reference is None:
                raise InputError("no image is there whose style could be reached; upload one")
            # Style alone knows no subject; content keeps that of the image before.
            return (f"style:{session.reference}", "0.3*content")
        if kind == "text" and text.strip():
            return (f"clip-text:{text.strip()}",)
        own = {f"own:{i}": each for i, each in enumerate(self.studio.model.metrics)}
        if kind in own:
            return (own[kind],)
        raise InputError("say what the image should become: a label or a text is missing")

    def _run(
        self,
        prompt: str,
        other: str,
        variable: str,
        kind: str,
        label: str,
        colour: str,
        text: str,
        steps: Any,
        sampling_steps: Any,
        adjoint: str,
        rate: Any,
        seed: Any,
        request: gr.Request,
    ) -> Iterator[dict[Any, Any]]:
        session = self._session(request)
        try:
            choice = Choice(
                prompt=prompt,
                other_prompt=other if variable != "noise" else "",
                variable=variable,
                metric=self._metric(session, kind, label, colour, text),
                steps=whole("the number of steps", steps),
                sampling_steps=whole("the number of sampling steps", sampling_steps),
                adjoint=adjoint,
                learning_rate=number("the step length", rate),
                seed=whole("the seed", seed),
            )
        except InputError as error:
            yield self._failed(Failed(str(error)))
            return
        clear = dict.fromkeys([self.live, self.curve, self.figures, self.maps], "")
        yield {
            **clear,
            self.result: gr.update(visible=False),
            self.status: status("Preparing", "running"),
            self.start: gr.update(interactive=False),
            self.halt: gr.update(interactive=True),
        }
        before: Any = None
        for event in self.studio.run(session, choice):
            if isinstance(event, Progress):
                before = event.image if before is None else before
                yield self._progress(event, before)
            elif isinstance(event, Finished):
                yield self._finished(event, choice)
            elif isinstance(event, Failed):
                yield self._failed(event)
            else:
                yield self._began(event)

    def _began(self, event: Waiting | Loading | First) -> dict[Any, Any]:
        if isinstance(event, Waiting):
            runs = "1 run comes" if event.before == 1 else f"{event.before} runs come"
            return {self.status: status(f"Waiting: {runs} first", "running")}
        if isinstance(event, Loading):
            return {self.status: status("Making the image without any optimization", "running", 0)}
        return {
            self.status: status("First step: sampling, and back through all of it", "running", 0),
            self.live: images({"before": event.image}),
        }

    def _progress(self, event: Progress, before: Any) -> dict[Any, Any]:
        after = f"after {event.step - 1} of {event.steps} steps"
        return {
            self.status: status(
                f"Step {event.step} of {event.steps}", "running", event.step / (event.steps + 1)
            ),
            self.live: images({"before": before, after: event.image}),
            self.curve: curve(event.values, event.steps),
            self.figures: figures(
                {
                    "Metric": f"{event.values[0]:.3g} → {event.values[-1]:.3g}",
                    "Denoiser calls": f"{event.calls:,}",
                    "Memory for the gradient": _size(event.bytes_saved),
                    "Time": f"{event.seconds:.0f} s",
                }
            ),
            self.maps: "<h3>The gradient: bright is where it is large</h3>"
            + images({_MAPS[name]: colored(event.maps[name]) for name in _MAPS if name in event.maps}),
        }

    def _finished(self, event: Finished, choice: Choice) -> dict[Any, Any]:
        first, last = event.values
        how = "Done" if event.step == event.steps else f"Stopped after {event.step} of {event.steps} steps"
        said = f"{how}: the metric went from {first:.3g} to {last:.3g} in {event.seconds:.0f} s."
        return {
            self.status: status(said, "done", 1),
            self.live: images({"before": _read(event.before), "after: the best step": _read(event.after)}),
            self.curve: curve(event.curve, max(event.step, 1)),
            self.result: gr.update(visible=True),
            self.slider: (str(event.before), str(event.after)),
            self.artefact: gr.update(
                value=str(event.artefact), label=f"Download {_ARTEFACTS[choice.variable]}"
            ),
            self.report: gr.update(value=str(event.page)),
            self.command: event.command,
            **self._idle(),
        }

    def _failed(self, event: Failed) -> dict[Any, Any]:
        return {self.status: status(event.message, "" if event.stopped else "failed"), **self._idle()}

    def _idle(self) -> dict[Any, Any]:
        return {self.start: gr.update(interactive=True), self.halt: gr.update(interactive=False)}

    def _stop(self, request: gr.Request) -> tuple[Any, Any]:
        there = self.studio.stop(self._session(request))
        said = status("Stopping after this step; what was reached is kept.", "running")
        return said if there else gr.skip(), gr.update(interactive=False)

    def _closed(self, request: gr.Request) -> None:
        session = self.sessions.pop(str(request.session_hash), None)
        if session is not None:
            self.studio.stop(session)


def _read(path: Path) -> Any:
    return as_8_bit(read_image(path.read_bytes()))


def _size(number: int | None) -> str:
    return "not counted" if number is None else f"{number / 2**20:.1f} MiB"
