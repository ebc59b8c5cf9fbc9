"""Guide a generation to a metric without training, in three ways at equal denoiser calls.

    noise         min over |x_T| = |x_T^0| of L(x(x_T, c)), end to end
    look-ahead    `trajectory.guided` with n steps and their exact gradient
    one step      the same with n = 1, as in DPS and FreeDoM: the baseline

The noise stays on its own sphere, where Gaussian noise lies. The two others repeat their moves until they have made
as many denoiser calls, forward and backward, as the first.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

from ..._types import Cond, InputError, Range, check_settings
from ...files.atomic_write import write_file
from ...files.diffusers_files import save_noise
from ...files.html_report import ImageTable, Page
from ...files.images import as_8_bit, output_folder, png, sheet
from ...metrics import beside
from ...metrics.check import check_metric, score
from ...metrics.image_classifier import Classifier
from ...optimization.distributed import Processes
from ...optimization.loop import optimize
from ...optimization.run_folder import alone
from ...optimization.seeds import key
from ...optimization.task import Loop, Losses, Task
from ...samplers.base import Sampler
from ...samplers.flow_sampler import FlowSampler
from ..evaluation import Mean, Rate, labels_of, predict
from ..sampling import noise_of, rows, sampled, saved
from .look_ahead import LookAhead, guided

__all__ = ["GuideResult", "GuideSettings", "Way", "guide"]


@dataclass(frozen=True)
class GuideSettings:
    """What a guided generation does.

    Args:
        max_train_steps: Number of optimization steps.
        learning_rate: Step length of the optimizer (Adam) on the noise, above 0.
        ahead: How the trajectory is guided; its repeats follow from equal calls.
        num_validation_images: Number of images for each prompt.
        train_batch_size: Number of images that are differentiated at once.
        seed: Random seed.
        checkpointing_steps: Number of steps between checkpoints; 0 saves only at the end.
    """

    max_train_steps: Annotated[int, Range(1)] = 10
    learning_rate: Annotated[float, Range(0, open_low=True)] = 0.1
    ahead: LookAhead = field(default_factory=lambda: LookAhead(steps=4))
    num_validation_images: Annotated[int, Range(1)] = 2
    train_batch_size: Annotated[int, Range(1)] = 8
    seed: Annotated[int, Range(0, 2**63 - 1)] = 0
    checkpointing_steps: Annotated[int, Range(0)] = 5

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True, eq=False)
class Way:
    """One way of guiding.

    images    (images, 3, height, width), not clamped
    values    (images,) the metric
    judged    how often the judge sees the prompt's thing; None without a judge
    calls     denoiser calls an image, forward and backward, the guidance's own sampling included
    """

    images: Tensor
    values: Tensor
    judged: Rate | None
    calls: int

    @property
    def reached(self) -> Mean:
        """The metric over all images."""
        return Mean.of(self.values)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        judged = None if self.judged is None else self.judged.as_dict()
        return {
            "values": self.values.tolist(),
            "reached": self.reached.as_dict(),
            "judged": judged,
            "calls": self.calls,
        }


@dataclass(frozen=True, eq=False)
class GuideResult:
    """What each way made; the files lie in `folder`, the best noise in `artefact`."""

    folder: Path
    artefact: Path
    ways: dict[str, Way]
    losses: list[float]
    costs: dict[str, Any]


class Guide(Task):
    """Initial noise towards a metric, each row its own, on its own sphere."""

    per_item = True

    def __init__(self, sampler: Sampler, metric: Any, noise: Tensor, cond: Cond, originals: Tensor) -> None:
        self.sampler, self.metric, self.cond, self.originals = sampler, metric, cond, originals
        self.norm = noise.flatten(1).norm(dim=1).view(-1, *[1] * (noise.ndim - 1))
        self.items, self.variables = len(noise), {"noise": noise.clone()}

    def losses(self, step: int, items: list[int]) -> Losses:
        images = self.sampler(self.variables["noise"][items], rows(self.cond, items))
        return Losses(score(beside(self.metric, self.originals[items]), images))

    def project(self) -> None:
        noise = self.variables["noise"]
        noise.mul_(self.norm / noise.flatten(1).norm(dim=1).clamp(min=1e-12).view_as(self.norm))


@alone
def guide(
    sampler: FlowSampler,
    metric: Any,
    prompts: Sequence[str],
    *,
    output: str | Path,
    settings: GuideSettings | None = None,
    judge: Classifier | None = None,
    labels: Sequence[str] | None = None,
    resume: bool = False,
    quiet: bool = False,
    config: Mapping[str, Any] | None = None,
    repeat: str = "",
    report: Callable[[int, dict[str, float]], None] | None = None,
) -> GuideResult:
    """Images of prompts that are lower in a metric than they would be.

    Args:
        sampler: makes the images.
        metric: lower is better; paired ones see the image that the same noise gives without guidance.
        prompts: what the images show.
        output: a folder for the noise, the images, result.json and the page.
        settings: how.
        judge: a classifier that says what images show, never part of a loss.
        labels: its label of each prompt; found in the prompts by default.
        resume, quiet, config, repeat, report: as of `audit`.

    Raises:
        InputError: no prompts, another kind of sampler or of images, a metric without a gradient, an unknown label, a
            folder that cannot be written.
    """
    if not prompts:
        raise InputError("guidance needs at least one prompt")
    if not isinstance(sampler, FlowSampler):
        raise InputError(
            f"guide moves the states of its own steps, so it needs a FlowSampler, but got {type(sampler).__name__}"
        )
    if sampler.image_shape[0] != 3:
        raise InputError(
            f"guide saves images of three channels, but this sampler makes {tuple(sampler.image_shape)}"
        )
    folder, s, began = output_folder(output), settings or GuideSettings(), time.perf_counter()
    truth = None if judge is None else torch.tensor(labels_of(judge, prompts, labels))
    each = [prompt for prompt in prompts for _ in range(s.num_validation_images)]
    noise = noise_of(sampler, [key(s.seed, "guide", i) for i in range(len(each))])
    with torch.no_grad():
        cond = sampler.encode(each)
    grey = torch.full((1, *sampler.image_shape), 0.5, dtype=noise.dtype, device=noise.device)
    check_metric(beside(metric, grey), sampler.image_shape, 1, noise)
    originals = sampled(sampler, noise, cond, s.train_batch_size)
    plain_calls = sampler.stats.nfe_forward

    def way(images: Tensor, calls: int) -> Way:
        with torch.no_grad():
            values = beside(metric, originals)(images)
        judged = None
        if judge is not None and truth is not None:
            says = predict(judge, saved(images)).argmax(1).cpu()
            judged = Rate.of_mask(says == truth.repeat_interleave(s.num_validation_images))
        return Way(images, values, judged, calls)

    about = {"prompts": list(prompts), **asdict(s), **(config or {})}
    about.pop("checkpointing_steps")
    loop = Loop(
        steps=s.max_train_steps,
        accumulation=-(-len(each) // s.train_batch_size),
        decay="cosine",
        seed=s.seed,
        folder=output_folder(folder / "state"),
        checkpointing_steps=s.checkpointing_steps,
        resume=resume,
        quiet=quiet,
        config=about,
        report=report,
    )
    task = Guide(sampler, metric, noise, cond, originals)
    # No weight decay: it would pull the noise towards zero, off its sphere.
    outcome = optimize(task, lambda leaves: torch.optim.Adam(leaves, s.learning_rate), loop)
    # A step is a forward and a backward pass; recomputation is a matter of memory and is not counted.
    budget = 2 * plain_calls * s.max_train_steps
    ways = {"no guidance": way(originals, plain_calls)}
    ways["noise"] = way(
        sampled(sampler, outcome.best["noise"], cond, s.train_batch_size), budget + plain_calls
    )
    for name, steps in (("look-ahead", s.ahead.steps), ("one step", 1)):
        ahead = _equal(replace(s.ahead, steps=steps), len(sampler.times()) - 1, budget)
        parts = [
            guided(sampler, beside(metric, originals[part]), noise[part], rows(cond, part), ahead)
            for part in (
                list(range(i, min(i + s.train_batch_size, len(each))))
                for i in range(0, len(each), s.train_batch_size)
            )
        ]
        ways[name] = way(torch.cat([part.images for part in parts]), parts[0].calls)
    costs = {
        "budget": budget,
        "bytes_saved": sampler.stats.bytes_saved,
        "seconds": time.perf_counter() - began,
    }
    path = folder / "noise.safetensors"
    result = GuideResult(folder, path, ways, outcome.losses, costs)
    if Processes.here().first:
        solver = type(sampler.solver).__name__
        save_noise(path, outcome.best["noise"], scheduler=solver, steps=sampler.steps)
        _write(result, about, each, repeat)
    return result


def _equal(ahead: LookAhead, steps: int, budget: int) -> LookAhead:
    """With as many repeats as the budget allows; at least one."""
    once = sum(
        2 * min(ahead.steps, steps - i) for i in range(steps) if ahead.first <= i / steps < ahead.last
    )
    return replace(ahead, repeats=max(1, round(budget / once)))


def _write(result: GuideResult, about: Mapping[str, Any], each: list[str], repeat: str) -> None:
    """result.json, the images in one file, and the page."""
    ways = {name: way.as_dict() for name, way in result.ways.items()}
    found = {"settings": dict(about), "ways": ways, "losses": result.losses, "costs": result.costs}
    write_file(result.folder / "result.json", json.dumps(found, indent=1, default=str).encode())
    page = Page("adjointdpm guide: generation towards a metric, without training")
    page.table(
        ["", "", "metric (95 %)", "concept seen by the judge", "denoiser calls"],
        [
            [
                name,
                "",
                str(way.reached),
                "no judge" if way.judged is None else str(way.judged),
                str(way.calls),
            ]
            for name, way in result.ways.items()
        ],
    )
    captions = each[:8]
    page.images(
        *(ImageTable(name, as_8_bit(way.images[:8]), captions) for name, way in result.ways.items())
    )
    images = torch.cat([as_8_bit(way.images[:8]) for way in result.ways.values()])
    write_file(result.folder / "pictures.png", png(sheet(images, len(captions))))
    page.curve(result.losses, "step", "metric (noise)")
    page.heading("What was differentiated, and how to repeat it")
    page.text(
        f"{result.costs['seconds']:.0f} seconds; calls are forward and backward, recomputation left out."
    )
    page.code(repeat or "adjointdpm.tasks.guide(...) with the settings in result.json")
    page.write(result.folder / "index.html")
