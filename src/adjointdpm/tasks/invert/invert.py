"""Invert a visual effect into a word: what a word does to images is learned from images.

    learned = TokenVectors(sampler, "<effect>", "plain")
    result = adp.tasks.invert(sampler, learned, PromptGoal("sepia"), ["a <effect> cat"], ["a <effect> car"], output=...)

    min_v  mean_i L(x(noise_i, c(v)); target_i)        through the whole sampling

Trained on a fixed set of noises; reported on those, on other noises of the same prompts, and on prompts and noises
that were not trained on. (Task of AdjointDPM, Pan et al., 2024, arXiv 2307.10711.)
"""

import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

from ..._types import InputError, Range, check_settings
from ...files.atomic_write import write_file
from ...files.html_report import ImageTable, Page
from ...files.images import as_8_bit, output_folder, png, sheet
from ...metrics import EffectDistance, Pixels, Sum, beside
from ...metrics.base import Paired
from ...metrics.check import check_metric, score
from ...metrics.image_classifier import Classifier
from ...optimization.distributed import Processes
from ...optimization.loop import optimize
from ...optimization.run_folder import alone
from ...optimization.seeds import key
from ...optimization.task import Loop, Losses, Task
from ...samplers.base import Sampler
from ..evaluation import Rate, predict
from ..sampling import noise_of, sampled, saved
from .learned_token import Goal, Learned, worded

__all__ = ["InvertResult", "InvertSettings", "Inverted", "check_distance", "invert"]

SETS = ("seen noise", "unseen noise", "unseen concepts")


@dataclass(frozen=True)
class InvertSettings:
    """What an inversion does.

    Args:
        max_train_steps: Number of optimization steps.
        learning_rate: Step length of the optimizer (Adam), above 0.
        train_batch_size: Number of images that are differentiated at once; all of them if it is not given.
        num_validation_images: Number of images for each prompt, for training and again for each report.
        validation_steps: Number of steps between validations, which choose the best iterate where a batch does not hold
            all images.
        seed: Random seed.
        checkpointing_steps: Number of steps between checkpoints; 0 saves only at the end.
    """

    max_train_steps: Annotated[int, Range(1)] = 100
    learning_rate: Annotated[float, Range(0, open_low=True)] = 0.02
    train_batch_size: Annotated[int | None, Range(1)] = None
    num_validation_images: Annotated[int, Range(1)] = 2
    validation_steps: Annotated[int, Range(1)] = 10
    seed: Annotated[int, Range(0, 2**63 - 1)] = 0
    checkpointing_steps: Annotated[int, Range(0)] = 10

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True, eq=False)
class Inverted:
    """One of the three reports.

    before, after, target     (images, 3, height, width): without the word, with it, and what was wanted
    distance_before, distance_after     mean of the distance to the target
    judged, judged_target     how often the judge sees the effect, in what was learned and in the target
    """

    prompts: list[str]
    before: Tensor
    after: Tensor
    target: Tensor
    distance_before: float
    distance_after: float
    judged: Rate | None
    judged_target: Rate | None

    @property
    def reduction(self) -> float:
        """1 - distance after / before."""
        return 1 - self.distance_after / self.distance_before

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "before": self.distance_before,
            "after": self.distance_after,
            "reduction": self.reduction,
            "judged": None if self.judged is None else self.judged.as_dict(),
            "judged_target": None if self.judged_target is None else self.judged_target.as_dict(),
        }


@dataclass(frozen=True, eq=False)
class InvertResult:
    """What an inversion found; the files lie in `folder`, the word in `artefact`."""

    folder: Path
    artefact: Path
    reports: dict[str, Inverted]
    losses: list[float]
    costs: dict[str, Any]


class Invert(Task):
    """The distance to fixed targets, of fixed pairs of prompt and noise."""

    def __init__(
        self,
        sampler: Sampler,
        learned: Learned,
        prompts: list[str],
        noise: Tensor,
        target: Tensor,
        distance: Any,
        batch: int,
    ) -> None:
        self.sampler, self.learned, self.prompts, self.batch = sampler, learned, prompts, batch
        self.noise, self.target, self.distance = noise, target, distance
        self.variables, self.items = learned.variables, len(prompts)

    def losses(self, step: int, items: list[int]) -> Losses:
        images = self.sampler(self.noise[items], self.learned.encode([self.prompts[i] for i in items]))
        return Losses(score(beside(self.distance, self.target[items]), images))

    def validate(self, step: int) -> float:
        parts = torch.arange(self.items).split(self.batch)
        return float(torch.cat([self.losses(step, part.tolist()).values for part in parts]).mean())


@alone
def invert(
    sampler: Sampler,
    learned: Learned,
    goal: Goal,
    prompts: Sequence[str],
    held_out: Sequence[str],
    *,
    token: str = "<effect>",
    output: str | Path,
    settings: InvertSettings | None = None,
    distance: Any = None,
    judge: Classifier | None = None,
    label: str | None = None,
    resume: bool = False,
    quiet: bool = False,
    config: Mapping[str, Any] | None = None,
    repeat: str = "",
    report: Callable[[int, dict[str, float]], None] | None = None,
) -> InvertResult:
    """Learn a word from what it should do to images.

    Args:
        sampler: over a pipeline.
        learned: the word: `TokenVectors` or `PromptRows`. It holds the best found afterwards.
        goal: `PromptGoal` or `EffectGoal`.
        prompts: trained on; each holds the token as a word.
        held_out: reported on besides; each holds the token.
        token: the word's name.
        output: a folder for the word, the images, result.json and the page.
        settings: how.
        distance: a metric whose every term compares with the target; `metrics.Pixels()` by default.
        judge, label: a classifier of effects, never part of a loss, and what it should say.
        resume, quiet, config, repeat, report: as of `audit`.

    Raises:
        InputError: a prompt without the token, a distance that does not compare with the target, an unknown label, a
            word that cannot be saved for other tools, a folder that cannot be written, a checkpoint of another run.
    """
    if not prompts or not held_out:
        raise InputError("an inversion needs prompts to learn from, and others to report on")
    for each in (*prompts, *held_out):
        worded(each, token, "")
    folder, settings, began = output_folder(output), settings or InvertSettings(), time.perf_counter()
    distance = Pixels() if distance is None else distance
    check_distance(distance)
    if sampler.image_shape[0] != 3:
        raise InputError(
            f"invert saves images of three channels, but this sampler makes {tuple(sampler.image_shape)}"
        )
    with tempfile.TemporaryDirectory() as trial:  # what cannot be saved is known before the work
        learned.save(Path(trial))
    wanted = None if judge is None or label is None else judge.index(label)
    like = sampler.noise(1)
    grey = torch.full((1, *sampler.image_shape), 0.5, dtype=like.dtype, device=like.device)
    check_metric(beside(distance, grey), sampler.image_shape, 1, like)

    def pairs(name: str, texts: Sequence[str]) -> tuple[list[str], Tensor, Tensor]:
        each = [text for text in texts for _ in range(settings.num_validation_images)]
        noise = noise_of(sampler, [key(settings.seed, name, i) for i in range(len(each))])
        batch = settings.train_batch_size or len(each)
        parts = [
            goal.targets(sampler, each[i : i + batch], token, noise[i : i + batch])
            for i in range(0, len(each), batch)
        ]
        return each, noise, torch.cat(parts)

    sets = {name: pairs(name, held_out if name == SETS[2] else prompts) for name in SETS}
    about = {"prompts": list(prompts), "goal": repr(goal), **asdict(settings), **(config or {})}
    about.pop("checkpointing_steps")
    seen = sets[SETS[0]]
    batch = settings.train_batch_size or len(seen[0])
    task = Invert(sampler, learned, *seen, distance, batch)
    loop = Loop(
        steps=settings.max_train_steps,
        batch_size=settings.train_batch_size,
        validation_steps=settings.validation_steps if batch < task.items else 0,
        decay="cosine",
        seed=settings.seed,
        folder=output_folder(folder / "state"),
        checkpointing_steps=settings.checkpointing_steps,
        resume=resume,
        quiet=quiet,
        config=about,
        report=report,
    )
    # No weight decay: it would pull the embedding towards zero, which is no word.
    outcome = optimize(task, lambda leaves: torch.optim.Adam(leaves, settings.learning_rate), loop)
    stats = sampler.stats
    costs: dict[str, Any] = {"bytes_saved": stats.bytes_saved}
    reports = {}
    for name, (each, noise, target) in sets.items():
        with torch.no_grad():
            plain = sampler.encode([worded(text, token, "") for text in each])
            cond = learned.encode(each)
        before, after = (sampled(sampler, noise, c, batch) for c in (plain, cond))
        with torch.no_grad():
            far = [float(beside(distance, target)(images).mean()) for images in (before, after)]
        rates: list[Rate | None] = [None, None]
        if judge is not None and wanted is not None:
            rates = [Rate.of_mask(predict(judge, saved(i)).argmax(1) == wanted) for i in (after, target)]
        reports[name] = Inverted(each, before, after, target, far[0], far[1], rates[0], rates[1])
    costs |= {"calls_a_sampling": sampler.stats.nfe_forward, "seconds": time.perf_counter() - began}
    artefact = learned.save(folder) if Processes.here().first else folder
    result = InvertResult(folder, artefact, reports, outcome.losses, costs)
    if Processes.here().first:
        _write(result, about, repeat)
    return result


def check_distance(distance: Any) -> None:
    """Check that a metric measures how far images are from the target of an inversion, and from nothing else.

    Raises:
        InputError: a term has a goal of its own, so that what is trained would not be what is reported.
    """
    for _, term in distance.terms if isinstance(distance, Sum) else ((1, distance),):
        if not isinstance(term, Paired) or isinstance(term, EffectDistance):
            raise InputError(
                f"{type(term).__name__} has a goal of its own beside the target that the word is to reach; use "
                "metrics.Pixels(), metrics.Content(...) or a sum of them, or tune weights to that goal"
            )


def _write(result: InvertResult, about: Mapping[str, Any], repeat: str) -> None:
    """result.json, the images in one file, and the page."""
    folder = result.folder
    found = {
        "settings": dict(about),
        "reports": {name: each.as_dict() for name, each in result.reports.items()},
        "losses": result.losses,
        "costs": result.costs,
    }
    write_file(folder / "result.json", json.dumps(found, indent=1).encode())
    page = Page("adjointdpm invert: a visual effect as a word")
    page.text(
        f"Goal: {about['goal']}. Learned in {about['max_train_steps']} steps from {len(about['prompts'])} prompts."
    )
    page.table(
        ["", "", "distance before", "after", "less by", "effect seen by the judge", "... in the targets"],
        [
            [
                name,
                "",
                f"{each.distance_before:.4f}",
                f"{each.distance_after:.4f}",
                f"{100 * each.reduction:.0f} %",
                *("no judge" if rate is None else str(rate) for rate in (each.judged, each.judged_target)),
            ]
            for name, each in result.reports.items()
        ],
    )
    page.curve(result.losses, "step", "distance")
    shown = slice(0, 6)
    for name, each in result.reports.items():
        page.heading(name)
        captions = each.prompts[shown]
        triple = {"without the word": each.before, "with it": each.after, "target": each.target}
        page.images(*(ImageTable(k, as_8_bit(v[shown]), captions) for k, v in triple.items()))
        images = torch.cat([as_8_bit(v[shown]) for v in triple.values()])
        write_file(folder / f"{name.replace(' ', '-')}.png", png(sheet(images, len(captions))))
    page.heading("What was differentiated, and how to repeat it")
    page.text(
        f"The whole sampling of {result.costs['calls_a_sampling']} denoiser calls; "
        f"{result.costs['seconds']:.0f} seconds."
    )
    page.code(repeat or "adjointdpm.tasks.invert(...) with the settings in result.json")
    page.write(folder / "index.html")
