"""How every task ends: result.json, which `load_result` reads and a schema describes, and a page.

    {"schema_version": 1, "task": "tune", "settings": {...}, "versions": {...}, "result": {...}}

The layout of `result` is that of the task; `result.schema.json` beside this module describes all of them.
"""

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from .. import zoo
from .._types import InputError
from ..files.atomic_write import write_file
from ..files.html_report import Page
from ..metrics.base import name_of
from ..optimization.task import RunOptions
from ..samplers.base import Sampler
from .frames import NOUNS

__all__ = [
    "SCHEMA",
    "About",
    "as_csv",
    "as_json",
    "facts_of",
    "load_result",
    "metric_in_words",
    "steps_of",
    "write_report",
]

SCHEMA: dict[str, Any] = json.loads((Path(__file__).parent / "result.schema.json").read_text())
VERSION: int = SCHEMA["properties"]["schema_version"]["const"]
_PACKAGES = ("adjointdpm", "torch", "diffusers", "transformers")
_COSTS: dict[str, str] = {
    "budget": "denoiser calls of each method, an image",
    "bytes_saved": "bytes saved for the backward pass",
    "calls": "denoiser calls of the optimization of an image, forward and backward",
    "calls_a_draw": "denoiser calls of one purification",
    "calls_a_gradient": "denoiser calls of the gradient of one draw, forward and backward",
    "calls_a_sampling": "denoiser calls of a sampling",
    "calls_a_step": "denoiser calls of a step of the optimization, forward and backward",
    "calls_an_image": "denoiser calls of an image's gradient, forward and backward",
    "candidates": "random points tried for each image",
    "gradients": "gradients of an image",
    "samplings_a_control": "samplings of a control, an image",
    "seconds": "seconds of the whole run",
    "weights": "weights trained",
}
_KINDS: dict[str, Any] = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "integer": int,
    "number": (int, float),
    "null": type(None),
}


def as_csv(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Return rows with the same names as the bytes of a csv."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def as_json(value: Any) -> Any:
    """Return a value as JSON knows values: numbers that are not finite become null, other objects texts."""
    if isinstance(value, Mapping):
        return {str(key): as_json(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, str | int | float) else str(value)


@dataclass(frozen=True, eq=False)
class About:
    """What the page of every task says besides what was found.

    Args:
        sampler: made the images; None where they came from files and no model denoised them.
        metric: what was lowered or raised, in words.
        direction: which values of it are better, such as "lower is better".
        differentiated: one sentence that says what the gradient went through.
        artefact: what was saved, as a noun, such as "the LoRA".
        loading: lines of Python or of a shell that load it.
    """

    sampler: Sampler | None
    metric: str
    direction: str
    differentiated: str
    artefact: str
    loading: Sequence[str]


def metric_in_words(metric: Any, run: RunOptions) -> str:
    """Return a metric as it was given on the command line, or else by the names of its terms."""
    given = run.config.get("metric")
    return " + ".join(map(str, given)) if given else name_of(metric)


def steps_of(sampler: Sampler) -> str:
    """Return the name of what makes a sampler's steps: a solver, or where there is none, a pipeline's scheduler."""
    solver = getattr(sampler.pipe, "scheduler", sampler) if sampler.solver is None else sampler.solver
    return type(solver).__name__


def facts_of(sampler: Sampler | None, config: Mapping[str, Any]) -> dict[str, str]:
    """Return what was run, with which versions, and when, for a page.

    Args:
        sampler: made the images; None for none.
        config: flags of the command line, if it was one; the model's name is among them.
    """
    when = {
        "Versions": ", ".join(f"{name} {metadata.version(name)}" for name in _PACKAGES),
        "Date": f"{datetime.now(timezone.utc):%Y-%m-%d, %H:%M} UTC",
    }
    if sampler is None:
        return when
    pipe = sampler.pipe
    name = config.get("pretrained_model_name_or_path") or getattr(pipe, "name_or_path", "")
    if name and Path(name).parent == Path(zoo.__file__).parent:
        name = Path(name).name
    kind = type(sampler if pipe is None else pipe).__name__
    made = f"{sampler.steps} steps of {steps_of(sampler)}"
    if sampler.guidance_scale is not None:
        made += f", guidance scale {float(sampler.guidance_scale):g}"
    return {
        "Model": f"{name} ({kind})" if name else kind,
        NOUNS[sampler.medium].capitalize(): made,
        "Gradient": "plain autograd" if sampler.adjoint is None else repr(sampler.adjoint),
        **when,
    }


def write_report(
    task: str, result: Any, settings: Mapping[str, Any], page: Page, about: About, run: RunOptions
) -> None:
    """Write result.json and the page index.html into a result's folder.

    Args:
        task: the name of the function in `adjointdpm.tasks`.
        result: has a `folder`, `costs`, and `as_dict()`.
        settings: those of the task, and what else decides the result.
        page: what was found, and the verdict; what is added is the same for all tasks.
        about: what the page says besides.
        run: has the command that repeats the run.

    Raises:
        SavingError: the disk is full, or the folder cannot be written.
    """
    found = {
        "schema_version": VERSION,
        "task": task,
        "settings": settings,
        "versions": {name: metadata.version(name) for name in _PACKAGES},
        "result": result.as_dict(),
    }
    content = json.dumps(as_json(found), indent=1, allow_nan=False)
    write_file(result.folder / "result.json", content.encode())
    page.facts = {
        "Metric": f"{about.metric}; {about.direction}",
        **facts_of(about.sampler, run.config),
        **page.facts,
    }
    page.heading("How to load the result")
    page.text(f"Saved: {about.artefact}. Each line loads what was saved.")
    page.code("\n".join(about.loading))
    page.heading("What was differentiated, and what it cost")
    page.text(about.differentiated)
    page.table(
        ["cost", "amount"],
        [[str(_COSTS.get(name, name)), _figure(value)] for name, value in result.costs.items()],
    )
    page.heading("How to repeat this")
    page.code(run.repeat or f"adjointdpm.tasks.{task}(...) with the settings in result.json")
    page.values("All settings", {name: _setting(value) for name, value in settings.items()})
    page.write(result.folder / "index.html")


def _setting(value: Any) -> str:
    """Return a setting as a page has it: a text as it is, all else as JSON has it."""
    return value if isinstance(value, str) and value else json.dumps(as_json(value), ensure_ascii=False)


def _figure(value: Any) -> str:
    if value is None:
        return "not measured"
    return f"{value:.1f}" if isinstance(value, float) else f"{value:,}"


def load_result(path: str | Path) -> dict[str, Any]:
    """What a task wrote into result.json, checked against the schema.

    Args:
        path: the file, or the folder that was the task's `output`.

    Returns:
        dict: `task`, `settings`, `versions`, and the task's own `result`; see `result.schema.json`.

    Raises:
        InputError: the file is not there or is no JSON, a newer release wrote it, or a key is missing, unknown or of
            another kind.
    """
    path = Path(path)
    path = path / "result.json" if path.is_dir() else path
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"cannot read the result {path}: {error}; give a task's output folder") from error
    version = found.get("schema_version") if isinstance(found, dict) else None
    if isinstance(version, int) and version > VERSION:
        raise InputError(
            f"{path} has schema_version {version}, and this release of adjointdpm reads {VERSION}; install a newer one"
        )
    for problem in _problems(found, SCHEMA, "the file"):
        raise InputError(f"{path} is no result of a task: {problem}; run the task again")
    return found


def _problems(value: Any, schema: Mapping[str, Any], place: str) -> Iterator[str]:
    """Yield what contradicts a schema, of whose keywords those in `result.schema.json` are known here."""
    if "$ref" in schema:
        schema = SCHEMA["$defs"][schema["$ref"].removeprefix("#/$defs/")]
    kinds = schema.get("type", list(_KINDS))
    kinds = [kinds] if isinstance(kinds, str) else kinds
    is_bool = isinstance(value, bool)
    if not any(isinstance(value, _KINDS[kind]) and (kind == "boolean" or not is_bool) for kind in kinds):
        yield f"{place} must be of type {' or '.join(kinds)}, but is {str(value)[:40]!r}"
        return
    for keyword, known in (("const", [schema.get("const")]), ("enum", schema.get("enum", []))):
        if keyword in schema and value not in known:
            yield f"{place} must be {' or '.join(map(repr, known))}, but is {str(value)[:40]!r}"
    if isinstance(value, list):
        for number, each in enumerate(value):
            yield from _problems(each, schema.get("items", {}), f"entry {number} of {place}")
    if isinstance(value, dict):
        own, more = schema.get("properties", {}), schema.get("additionalProperties", True)
        for name in schema.get("required", ()):
            if name not in value:
                yield f"{place} has no key {name!r}"
        for name, each in value.items():
            if name not in own and more is False:
                yield f"{place} has an unknown key {name!r}"
            elif name in own or more is not True:
                yield from _problems(each, own.get(name, more), repr(name))
    for case in schema.get("allOf", ()):
        if not any(_problems(value, case["if"], "")):
            yield from _problems(value, case["then"], place)
