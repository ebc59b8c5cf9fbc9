"""Invert a visual effect into a word: what a word does to images is learned from images.

    learned = TokenVectors(sampler, "<effect>", "plain")
    result = adp.tasks.invert(sampler, learned, PromptGoal("sepia"), ["a <effect> cat"], ["a <effect> car"], output=...)

    min_v  mean_i L(x(noise_i, c(v)); target_i)        through the whole sampling

Trained on a fixed set of noises; reported on those, on other noises of the same prompts, and on prompts and noises
that were not trained on. (Task of AdjointDPM, Pan et al., 2024, arXiv 2307.10711.)
"""

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..._types import InputError
from ...files.html_report import ImageTable, Page
from ...files.images import as_8_bit, output_folder
from ...metrics import EffectDistance, Pixels, Sum, beside
from ...metrics.base import Paired
from ...metrics.check import score
from ...metrics.image_classifier import Classifier
from ...optimization.distributed import Processes
from ...optimization.loop import optimize
from ...optimization.run_folder import alone
from ...optimization.seeds import key
from ...optimization.task import Losses, RunOptions, Task
from ...samplers.base import Sampler
from ..evaluation import Rate, check_on_gray, recognized
from ..report import write_report
from ..sampling import each_of, needs_rgb, noise_of, parts, sampled
from ..settings import Count, Length, TaskSettings, checkpointed
from .learned_token import Goal, Learned, worded

__all__ = ["InvertResult", "InvertSettings", "Inverted", "check_distance", "invert"]

SETS = ("seen noise", "unseen noise", "unseen concepts")


@dataclass(frozen=True, kw_only=True)
class InvertSettings(TaskSettings):
    """What an inversion does.

    Args:
        num_validation_images: Number of images for each prompt, for training and again for each report.
        validation_steps: Number of steps between validations, which choose the best iterate where a batch does not hold
            all images.
    """

    learning_rate: Length = 0.02
    num_validation_images: Count = 2
    validation_steps: Count = 10


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
        """Return what result.json says of it."""
        return {
            "before": self.distance_before,
            "after": self.distance_after,
            "reduction": self.reduction,
            "judged": self.judged and self.judged.as_dict(),
            "judged_target": self.judged_target and self.judged_target.as_dict(),
        }


@dataclass(frozen=True, eq=False)
class InvertResult:
    """What an inversion found; the files lie in `folder`, the word in `artefact`."""

    folder: Path
    artefact: Path
    reports: dict[str, Inverted]
    losses: list[float]
    costs: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """Return what result.json says of it."""
        reports = {name: each.as_dict() for name, each in self.reports.items()}
        return {"reports": reports, "losses": self.losses, "costs": self.costs}


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
        found = [self.losses(step, part).values for part in parts(self.items, self.batch)]
        return float(torch.cat(found).mean())


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
    run: RunOptions = RunOptions(),
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
        run: whether the run is resumed, and what it reports.

    Returns:
        InvertResult: the distances before and after, on seen noise, on unseen noise and on unseen concepts.

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
    needs_rgb(sampler, "invert")
    with tempfile.TemporaryDirectory() as trial:  # what cannot be saved is known before the work
        learned.save(Path(trial))
    wanted = None if judge is None or label is None else judge.index(label)
    check_on_gray(sampler, distance)

    def pairs(name: str, texts: Sequence[str]) -> tuple[list[str], Tensor, Tensor]:
        each = each_of(texts, settings.num_validation_images)
        noise = noise_of(sampler, [key(settings.seed, name, i) for i in range(len(each))])
        targets = [
            goal.targets(sampler, [each[i] for i in part], token, noise[part])
            for part in parts(len(each), settings.train_batch_size)
        ]
        return each, noise, torch.cat(targets)

    sets = {name: pairs(name, held_out if name == SETS[2] else prompts) for name in SETS}
    about = checkpointed({"prompts": list(prompts), "goal": repr(goal), **asdict(settings), **run.config})
    seen = sets[SETS[0]]
    batch = settings.train_batch_size or len(seen[0])
    task = Invert(sampler, learned, *seen, distance, batch)
    loop = replace(
        settings.loop(folder / "state", run, about),
        batch_size=settings.train_batch_size,
        validation_steps=settings.validation_steps if batch < task.items else 0,
    )
    # No weight decay: it would pull the embedding towards zero, which is no word.
    outcome = optimize(task, lambda leaves: torch.optim.Adam(leaves, settings.learning_rate), loop)
    costs: dict[str, Any] = {"bytes_saved": sampler.stats.bytes_saved}
    reports = {}
    for name, (each, noise, target) in sets.items():
        with torch.no_grad():
            plain = sampler.encode([worded(text, token, "") for text in each])
            before, after = (sampled(sampler, noise, c, batch) for c in (plain, learned.encode(each)))
            far = [float(beside(distance, target)(images).mean()) for images in (before, after)]
        rates = [recognized(judge, images, wanted) for images in (after, target)]
        reports[name] = Inverted(each, before, after, target, far[0], far[1], rates[0], rates[1])
    costs |= {"calls_a_sampling": sampler.stats.nfe_forward, "seconds": time.perf_counter() - began}
    artefact = learned.save(folder) if Processes.here().first else folder
    result = InvertResult(folder, artefact, reports, outcome.losses, costs)
    if Processes.here().first:
        said = "The whole sampling, with respect to the word's embedding."
        write_report("invert", result, about, _page(result, about), said, run)
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


def _page(result: InvertResult, about: Mapping[str, Any]) -> Page:
    """Return the page of the three reports, whose images are saved beside it, too."""
    page = Page("adjointdpm invert: a visual effect as a word")
    page.text(
        f"Goal: {about['goal']}. Learned in {about['max_train_steps']} steps from {len(about['prompts'])} prompts."
    )
    page.table(
        ["", "distance before", "after", "less by", "recognized by the judge", "... in the targets"],
        [
            [
                name,
                f"{each.distance_before:.4f}",
                f"{each.distance_after:.4f}",
                f"{100 * each.reduction:.0f} %",
                *("no judge" if rate is None else str(rate) for rate in (each.judged, each.judged_target)),
            ]
            for name, each in result.reports.items()
        ],
    )
    page.curve(result.losses, "step", "distance")
    for name, each in result.reports.items():
        page.heading(name)
        rows = {"without the word": each.before, "with it": each.after, "target": each.target}
        page.images(
            *(ImageTable(k, as_8_bit(images[:6]), each.prompts[:6]) for k, images in rows.items()),
            file=result.folder / f"{name.replace(' ', '-')}.png",
        )
    return page
