"""Invert a visual effect into a token, from a metric on the finished image.

    goal = MetricGoal(Style(features, image_of_the_effect) + 0.3 * Content(features))
    learned = TokenVectors(sampler, "<effect>", "a")
    result = adp.tasks.invert(sampler, learned, goal, ["a <effect> cat"], ["a <effect> car"], output=...)

    min_v  mean_i L(x(noise_i, c_i(v)); y_i)        through the whole sampling; L and y_i are the goal's

Trained on a fixed set of noises; reported on those, on other noises of the same prompts, and on prompts and noises
that were not trained on. (Task of AdjointDPM, Pan et al., 2024, arXiv 2307.10711.)
"""

import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..._types import InputError
from ...files.html_report import Page, table_of
from ...files.images import output_folder
from ...metrics import beside, for_medium, for_prompts
from ...metrics.check import score
from ...metrics.image_classifier import Classifier
from ...optimization.distributed import Processes
from ...optimization.loop import optimize
from ...optimization.run_folder import alone
from ...optimization.seeds import key
from ...optimization.task import Losses, RunOptions, Task
from ...samplers.base import Sampler
from ..evaluation import Rate, change, check_on_gray, predict, recognized
from ..frames import FrameDraws, check_judge, frames_of, sample_frames
from ..report import About, write_report
from ..sampling import each_of, needs_rgb, noise_of, parts, sampled, saved
from ..settings import BatchSettings, Count, Length, checkpointed
from .goals import Goal
from .learned_token import Learned, worded
from .starts import Start, check_starts, choose_start

__all__ = ["InvertResult", "InvertSettings", "Inverted", "invert"]

SETS = ("seen noise", "unseen noise", "unseen concepts")


@dataclass(frozen=True, kw_only=True)
class InvertSettings(BatchSettings):
    """What an inversion does.

    Args:
        num_validation_images: Number of images for each prompt, for training and again for each report.
        validation_steps: Number of steps between validations, which choose the best iterate where a batch does not hold
            all images.
        num_starts: Number of initial words, those with the lowest metric, from which a short run is made; the token
            with the lowest metric then goes on. 1 makes no short runs.
        start_steps: Number of optimization steps of each short run.
    """

    learning_rate: Length = 0.02
    num_validation_images: Count = 2
    validation_steps: Count = 10
    num_starts: Count = 1
    start_steps: Count = 20


@dataclass(frozen=True, eq=False)
class Inverted:
    """One of the three reports.

    before, after, target     images (batch, 3, height, width): without the token, with it, and what it is to reach;
                              target is None where the goal has no images to reach
    metric_before, metric_after     mean of the goal's metric; None where there are no images to compare with
    judged_before, judged, judged_target     how often the judge gives the label: without the token, with it, targets
    named     how often the judge gives each label to the images with the token
    """

    prompts: list[str]
    before: Tensor
    after: Tensor
    target: Tensor | None
    metric_before: float | None
    metric_after: float | None
    judged_before: Rate | None
    judged: Rate | None
    judged_target: Rate | None
    named: dict[str, int] | None

    @property
    def reduction(self) -> float | None:
        """1 - metric after / before; None where the metric was not above 0 before."""
        before, after = self.metric_before, self.metric_after
        return None if before is None or after is None or before <= 0 else 1 - after / before

    def as_dict(self) -> dict[str, Any]:
        """Return what result.json says of it."""
        rates = {name: getattr(self, name) for name in ("judged_before", "judged", "judged_target")}
        return {
            "before": self.metric_before,
            "after": self.metric_after,
            "reduction": self.reduction,
            **{name: rate and rate.as_dict() for name, rate in rates.items()},
            "named": self.named,
        }


@dataclass(frozen=True, eq=False)
class InvertResult:
    """What an inversion found; the files lie in `folder`, the token in `artefact`.

    starts    the initial words, that with the lowest metric first; empty where there was one
    """

    folder: Path
    artefact: Path
    reports: dict[str, Inverted]
    starts: list[Start]
    losses: list[float]
    costs: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """Return what result.json says of it."""
        reports = {name: each.as_dict() for name, each in self.reports.items()}
        starts = [each.as_dict() for each in self.starts]
        return {"reports": reports, "starts": starts, "losses": self.losses, "costs": self.costs}


class Invert(Task):
    """The metric of a goal, on fixed pairs of prompt and noise.

    Args:
        sampler: makes the images.
        learned: the token.
        prompts: one a pair, with the token.
        asked: the same without it, for metrics that read prompts.
        noise: one a pair, (batch, *shape).
        compared: the images that paired terms compare with, (batch, 3, height, width).
        metric: lower is better.
        batch: number of images that are validated at once.
        frames: draws the frames of videos that a step differentiates; all of them if None.
    """

    def __init__(
        self,
        sampler: Sampler,
        learned: Learned,
        prompts: list[str],
        asked: list[str],
        noise: Tensor,
        compared: Tensor,
        metric: Any,
        batch: int,
        frames: FrameDraws | None = None,
    ) -> None:
        self.sampler, self.learned, self.prompts, self.batch = sampler, learned, prompts, batch
        self.asked = asked
        self.noise, self.compared, self.metric = noise, compared, metric
        self.frames = frames or FrameDraws(sampler, None, 0, metric)
        self.variables, self.items = learned.variables, len(prompts)

    def losses(self, step: int, items: list[int]) -> Losses:
        cond = self.learned.encode([self.prompts[i] for i in items])
        frames = self.frames.at(step)
        images = sample_frames(self.sampler, self.noise[items], cond, frames)
        return Losses(self._scored(images, items, frames))

    def bytes_saved(self) -> int | None:
        return self.sampler.stats.bytes_saved

    def validate(self, step: int) -> float:
        found: list[Tensor] = []
        for part in parts(self.items, self.batch):
            cond = self.learned.encode([self.prompts[i] for i in part])
            found.append(self._scored(self.sampler(self.noise[part], cond), part, None))
        return float(torch.cat(found).mean())

    def _scored(self, images: Tensor, items: list[int], frames: Sequence[int] | None) -> Tensor:
        """Return the metric of images of some items, or of some frames of their videos."""
        metric = for_prompts(self.metric, [self.asked[i] for i in items])
        return score(beside(metric, frames_of(self.compared[items], frames)), images)


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs of prompt and noise, their images without the token, and the goal's images of comparison, if any."""

    prompts: list[str]
    asked: list[str]
    noise: Tensor
    before: Tensor
    compared: Tensor | None


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
    judge: Classifier | None = None,
    label: str | None = None,
    run: RunOptions = RunOptions(),
) -> InvertResult:
    """Learn a token from what it is to do to finished images.

        min_v  mean_i L(x(noise_i, c_i(v)); y_i)

    Args:
        sampler: a sampler over a pipeline.
        learned: the token: `TokenVectors` or `PromptRows`. It holds the best iterate afterwards. Where it has several
            initial words, it starts from the one whose images have the lowest metric, or whose short run has
            (`InvertSettings.num_starts`): use them where one word may be a bad start, as "a" is for an effect that
            changes all colors. A word costs one sampling without a gradient of all that is trained on.
        goal: the metric L and its images of comparison y: `MetricGoal` (any metric, such as the style of one image),
            `PromptGoal`, `EffectGoal` or `ImageGoal`.
        prompts: prompts to train on; each holds the token as a word.
        held_out: prompts to report on besides; each holds the token.
        token: the token's name.
        output: a folder for the token, the images, result.json and the page.
        settings: how the token is learned.
        judge: a classifier of effects, never part of a loss; reports count the labels that it gives.
        label: the label that the judge should give the images with the token.
        run: whether the run is resumed, and what it reports.

    Returns:
        InvertResult: the metric before and after, on seen noise, on unseen noise and on unseen concepts.

    Raises:
        InputError: a prompt without the token, a metric without a gradient, images of comparison of another number or
            size, fewer initial words than starts, an unknown label, a token that cannot be saved for other tools, a
            folder that cannot be written, a checkpoint of another run.

    Examples:
        One image of an effect, and prompts in which a new token stands for it:

        >>> import tempfile
        >>> import torch
        >>> import adjointdpm as adp
        >>> sampler = adp.load_bundled("emoji", steps=2)
        >>> net = adp.load_classifier("emoji/resnet")
        >>> features = adp.metrics.HiddenStates(net.model, net.normalized, layers=(0,))
        >>> image = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
        >>> goal = adp.tasks.MetricGoal(
        ...     adp.metrics.Style(features, image) + 0.3 * adp.metrics.Content(features)
        ... )
        >>> learned = adp.tasks.TokenVectors(sampler, "<effect>", "a")
        >>> settings = adp.tasks.InvertSettings(max_train_steps=2, num_validation_images=1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     found = adp.tasks.invert(
        ...         sampler, learned, goal, ["a <effect> cat"], ["a <effect> car"], output=folder,
        ...         settings=settings, run=adp.tasks.RunOptions(quiet=True),
        ...     )
        >>> found.reports["seen noise"].metric_after <= found.losses[0]
        True
    """
    if not prompts or not held_out:
        raise InputError("an inversion needs prompts to learn from, and others to report on")
    for each in (*prompts, *held_out):
        worded(each, token, "")
    folder, settings, began = output_folder(output), settings or InvertSettings(), time.perf_counter()
    needs_rgb(sampler, "invert")
    check_judge(sampler, judge)
    metric = for_medium(goal.loss, sampler.medium)
    frames = FrameDraws(sampler, settings.frames_per_step, settings.seed, metric)
    check_starts(learned, settings.num_starts)
    with tempfile.TemporaryDirectory() as trial:  # what cannot be saved is known before the work
        learned.save(Path(trial))
    wanted = None if judge is None or label is None else judge.index(label)
    check_on_gray(sampler, [worded(each, token, "") for each in (*prompts, *held_out)], metric)
    sets = {
        name: _pairs(
            sampler, goal, name, held_out if name == SETS[2] else prompts, token, settings, run.quiet
        )
        for name in SETS
    }
    seen = sets[SETS[0]]
    assert seen.compared is not None
    if Processes.here().first:
        table_of("", seen.before, [""] * len(seen.before), sampler.rate).save(folder / "without-token")
    about = checkpointed(
        {
            "prompts": list(prompts),
            "goal": repr(goal),
            "initializers": list(learned.initializers),
            **asdict(settings),
            **run.config,
        }
    )
    batch = settings.train_batch_size or len(seen.prompts)
    task = Invert(
        sampler, learned, seen.prompts, seen.asked, seen.noise, seen.compared, metric, batch, frames
    )
    loop = settings.loop(folder / "state", run, about)
    some_items = loop.batch_size is not None and loop.batch_size < task.items
    if some_items or settings.frames_per_step is not None:
        loop = replace(loop, validation_steps=settings.validation_steps)

    def optimizer(leaves: list[Tensor]) -> torch.optim.Optimizer:
        # No weight decay: it would pull the embedding towards zero, which is no token.
        return torch.optim.Adam(leaves, settings.learning_rate)

    starts = choose_start(
        task, learned, optimizer, loop, num_starts=settings.num_starts, start_steps=settings.start_steps
    )
    outcome = optimize(task, optimizer, loop)
    costs: dict[str, Any] = {"bytes_saved": sampler.stats.bytes_saved}
    reports = {}
    for name, pairs in sets.items():
        with torch.no_grad():
            cond, what = learned.encode(pairs.prompts), f"{name}, with the token"
            after = sampled(sampler, pairs.noise, cond, batch, what=what, quiet=run.quiet)
        reports[name] = _report(pairs, after, metric, goal.has_targets, judge, wanted)
    costs |= {"calls_a_sampling": sampler.stats.nfe_forward, "seconds": time.perf_counter() - began}
    artefact = learned.save(folder) if Processes.here().first else folder
    result = InvertResult(folder, artefact, reports, starts, outcome.losses, costs)
    if Processes.here().first:
        closing = About(
            sampler,
            goal.words,
            "lower is better",
            "The metric through the decoder and every step of the sampling, with respect to the token's embedding.",
            "the token",
            learned.loading(artefact),
        )
        write_report(
            "invert",
            result,
            {**about, "goal": goal.words},
            _page(result, about, label, sampler.rate),
            closing,
            run,
        )
    return result


def _pairs(
    sampler: Sampler,
    goal: Goal,
    name: str,
    texts: Sequence[str],
    token: str,
    settings: InvertSettings,
    quiet: bool,
) -> Pairs:
    """Return the pairs of a set of prompts, whose noise is keyed by the set's name.

    Raises:
        InputError: the goal's images are of another number or size.
    """
    prompts = each_of(texts, settings.num_validation_images)
    noise = noise_of(sampler, [key(settings.seed, name, i) for i in range(len(prompts))])
    known: dict[str, Tensor] = {}

    def images_with(word: str) -> Tensor:
        if word not in known:
            with torch.no_grad():
                cond = sampler.encode([worded(each, token, word) for each in prompts])
                batch, what = settings.train_batch_size, f"{name}, {word or 'without the token'}"
                known[word] = sampled(sampler, noise, cond, batch, what=what, quiet=quiet)
        return known[word]

    compared = None
    if name == SETS[0] or not goal.seen_noise_only:
        with torch.no_grad():
            compared = goal.compared(images_with).to(noise)
        needed = (len(prompts), *sampler.output_shape)
        if compared.shape != needed:
            raise InputError(
                f"{goal!r} has images of comparison of shape {tuple(compared.shape)}, but {len(texts)} prompts with "
                f"{settings.num_validation_images} noises each need {needed[0]} of shape {needed[1:]}; give {needed}"
            )
    return Pairs(prompts, [worded(each, token, "") for each in prompts], noise, images_with(""), compared)


def _report(
    pairs: Pairs, after: Tensor, loss: Any, has_targets: bool, judge: Classifier | None, wanted: int | None
) -> Inverted:
    """Return what the metric and the judge say of the images with the token."""
    before = reached = None
    target = pairs.compared if has_targets else None
    if pairs.compared is not None:
        with torch.no_grad():
            metric = beside(for_prompts(loss, pairs.asked), pairs.compared)
            before, reached = (float(metric(images).mean()) for images in (pairs.before, after))
    named = None
    if judge is not None:
        found = predict(judge, saved(after)).argmax(1).tolist()
        named = dict(Counter(judge.labels[i] for i in found).most_common())
    return Inverted(
        pairs.prompts,
        pairs.before,
        after,
        target,
        before,
        reached,
        recognized(judge, pairs.before, wanted),
        recognized(judge, after, wanted),
        None if target is None else recognized(judge, target, wanted),
        named,
    )


def _page(result: InvertResult, about: Mapping[str, Any], label: str | None, rate: float | None) -> Page:
    """Return the page of the three reports, whose images are saved beside it, too."""
    page = Page("adjointdpm invert: a visual effect as a token")
    page.verdict = _verdict(result.reports)
    prompts = len(about["prompts"])
    page.text(
        f"The token was learned in {about['max_train_steps']} steps from {prompts} prompt{'s' if prompts > 1 else ''}. "
        "“seen noise” is what it was trained on, “unseen noise” the same prompts with other noise, and “unseen "
        "concepts” are prompts and noise that it was not trained on."
    )
    head = ["", "metric without the token", "with it", "change"]
    if any(each.named is not None for each in result.reports.values()):
        judged = "judge's label" if label is None else f"judge says {label}"
        head += [f"{judged}, with the token", "without it", "of the targets", "what the judge names"]
    page.table(head, [[name, *_figures(each)][: len(head)] for name, each in result.reports.items()])
    if result.starts:
        page.heading("initial words")
        page.table(
            ["", "metric", "after a short run", ""],
            [
                [
                    each.word,
                    f"{each.metric:.4f}",
                    "" if each.metric_after is None else f"{each.metric_after:.4f}",
                    "the token starts from it" if each.chosen else "",
                ]
                for each in result.starts
            ],
        )
    page.curve(result.losses, "step", "metric")
    for name, each in result.reports.items():
        page.heading(name)
        rows = {"without the token": each.before, "with it": each.after}
        rows |= {} if each.target is None else {"target": each.target}
        page.images(
            *(table_of(k, images[:6], each.prompts[:6], rate) for k, images in rows.items()),
            file=result.folder / f"{name.replace(' ', '-')}.png",
        )
    return page


def _verdict(reports: Mapping[str, Inverted]) -> str:
    """Return in whole sentences how far the token came."""
    found = {name: each for name, each in reports.items() if each.metric_before is not None}
    sentence = "; ".join(
        f"{change(each.metric_before, each.metric_after)} on {name} ({each.metric_before:.4g} without the token, "
        f"{each.metric_after:.4g} with it)"
        for name, each in found.items()
    )
    text = f"With the token, the metric is {sentence}. Lower is better."
    if len(found) < len(reports):
        text += " There are no images to compare with for the others."
    last = reports[SETS[2]]
    if last.judged is not None and last.judged_before is not None:
        text += (
            f" The judge gives {last.judged.hits} of {last.judged.of} images of unseen concepts the wanted label with "
            f"the token, and {last.judged_before.hits} without it."
        )
    return text


def _figures(report: Inverted) -> list[str]:
    """Return a report's cells of the page's table."""
    means = ["no target" if x is None else f"{x:.4f}" for x in (report.metric_before, report.metric_after)]
    rates = (report.judged, report.judged_before, report.judged_target)
    return [
        *means,
        "" if report.reduction is None else f"{-100 * report.reduction:+.0f} %",
        *("" if rate is None else str(rate) for rate in rates),
        ", ".join(f"{label} {count}" for label, count in (report.named or {}).items()),
    ]
