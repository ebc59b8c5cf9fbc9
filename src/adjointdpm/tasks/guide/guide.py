"""Guide a generation to a metric without training, by three methods at equal denoiser calls.

    noise         min over |x_T| = |x_T^0| of L(x(x_T, c)), end to end
    look-ahead    `look_ahead.guided` with n steps and their exact gradient
    one step      the same with n = 1, as in DPS and FreeDoM: the baseline

The noise stays on its own sphere, where Gaussian noise lies, or white; `noise_optimization` says how its steps, its
starts and its calls are chosen. The two others repeat their moves until they have made
as many denoiser calls, forward and backward, as the first.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

from ..._types import Cond, InputError, Range
from ...files.diffusers_files import save_noise
from ...files.html_report import Page
from ...files.images import output_folder
from ...flow.per_sample import norms
from ...metrics import beside, for_medium, for_prompts
from ...metrics.base import is_paired
from ...metrics.check import score
from ...metrics.image_classifier import Classifier
from ...optimization.distributed import Processes
from ...optimization.loop import optimize
from ...optimization.progress import progress
from ...optimization.run_folder import alone
from ...optimization.seeds import key
from ...optimization.task import Losses, RunOptions
from ...samplers.base import Sampler
from ...samplers.flow_sampler import FlowSampler
from ..evaluation import check_on_gray, labels_of
from ..frames import NOUNS, FrameDraws, check_judge, frames_of
from ..methods import Evaluation, MethodsResult, verdict_of, write_methods
from ..noise_optimization import Judged, NoiseSettings, NoiseTask, Stages
from ..report import About, metric_in_words, steps_of, write_report
from ..sampling import each_of, needs_rgb, noise_of, parts, rows, sampled
from ..settings import Count, FrameSettings, checkpointed
from .look_ahead import Guided, LookAhead, guided

__all__ = ["GuideResult", "GuideSettings", "guide"]

_FRAMES = 1e4  # added to the rank of an iterate for each step that is still to come, where steps differ in their frames


@dataclass(frozen=True, kw_only=True)
class GuideSettings(FrameSettings, NoiseSettings):
    """What a guided generation does.

    Args:
        learning_rate: Step length of the optimizer (Adam) on the noise, above 0.
        train_batch_size: Number of images that are differentiated at once.
        num_validation_images: Number of images for each prompt.
        baselines: Also guide the trajectory, with and without looking ahead, at as many denoiser calls.
        ahead: How the trajectory is guided; its repeats follow from equal calls.
    """

    max_train_steps: Count = 10
    train_batch_size: Count = 8
    checkpointing_steps: Annotated[int, Range(0)] = 5
    num_validation_images: Count = 2
    baselines: bool = True
    ahead: LookAhead = field(default_factory=lambda: LookAhead(look_ahead=4))


@dataclass(frozen=True, eq=False)
class GuideResult(MethodsResult):
    """What each method made; the best noise lies in `artefact`."""


class Guide(NoiseTask):
    """Initial noise towards a metric, each row its own, on its own sphere or white."""

    def __init__(
        self,
        stages: Stages,
        metric: Any,
        prompts: Sequence[str],
        noise: Tensor,
        cond: Cond,
        originals: Tensor,
        groups: Sequence[int] | None = None,
        white: bool = False,
        judged: Judged | None = None,
        frames: FrameDraws | None = None,
    ) -> None:
        super().__init__(stages, cond, noise, groups, white, judged)
        self.metric, self.prompts, self.originals = metric, prompts, originals
        self.frames = frames or FrameDraws(stages.samplers[-1], None, 0, metric)
        self.norm = norms(noise)

    def losses(self, step: int, items: list[int]) -> Losses:
        # The last iterate, which is scored without a graph, is measured on all frames.
        frames = self.frames.at(step) if torch.is_grad_enabled() else None
        images = self.sampled(step, items, frames)
        metric = for_prompts(self.metric, [self.prompts[i] for i in items])
        values = score(beside(metric, frames_of(self.originals[items], frames)), images)
        rank = values.detach().double()
        if self.frames.per_step is not None:
            # The losses of two steps are of different frames, so that a later iterate is the better one.
            rank = rank + _FRAMES * (self.stages.steps - step)
        return self.ranked(step, items, images, Losses(values, rank))

    def project(self) -> None:
        super().project()
        if not self.white:  # white noise has a norm of its own
            noise = self.variables["noise"]
            noise.mul_(self.norm / norms(noise))


@alone
def guide(
    sampler: Sampler,
    metric: Any,
    prompts: Sequence[str],
    *,
    output: str | Path,
    settings: GuideSettings | None = None,
    judge: Classifier | None = None,
    labels: Sequence[str] | None = None,
    run: RunOptions = RunOptions(),
) -> GuideResult:
    """Images of prompts that are lower in a metric than they would be.

    Args:
        sampler: makes the images, or videos or sound; the baselines need a FlowSampler.
        metric: lower is better; of images, it is averaged over the frames of videos. Paired ones see the image that
            the same noise gives without guidance.
        prompts: what the images show.
        output: a folder for the noise, the images, result.json and the page.
        settings: how.
        judge: a classifier that says what images show, never part of a loss.
        labels: its label of each prompt; found in the prompts by default.
        run: whether the run is resumed, and what it reports.

    Returns:
        GuideResult: the images of "no guidance", "noise" and, as baselines, "look-ahead" and "one step", and their
            metric.

    Raises:
        InputError: no prompts, another kind of sampler or of images, a metric without a gradient, an unknown label, a
            folder that cannot be written.
    """
    if not prompts:
        raise InputError("guidance needs at least one prompt")
    s, began = settings or GuideSettings(), time.perf_counter()
    if s.baselines and not isinstance(sampler, FlowSampler):
        raise InputError(
            "guide's baselines move the states of its own steps, so they need a FlowSampler, but got "
            f"{type(sampler).__name__}; leave them out: GuideSettings(baselines=False), or --no_baselines"
        )
    needs_rgb(sampler, "guide")
    check_judge(sampler, judge)
    metric = for_medium(metric, sampler.medium)
    frames = FrameDraws(sampler, s.frames_per_step, s.seed, metric)
    folder = output_folder(output)
    n, m, batch = s.num_validation_images, s.best_of, s.train_batch_size
    truth = None if judge is None else torch.tensor(labels_of(judge, prompts, labels)).repeat_interleave(n)
    check_on_gray(sampler, prompts, metric)
    # Starts besides the first need an original only where something is compared with it.
    compared = m > 1 and (is_paired(metric) or s.judge_patience is not None)
    stages = Stages.of(sampler, s, prompts[0], judge, extra=compared)
    s = replace(s, max_train_steps=stages.steps)
    each, plain_calls = each_of(prompts, n), stages.calls[-1]
    seeds = [("guide", i, j) if j else ("guide", i) for i in range(len(each)) for j in range(m)]
    starts = noise_of(sampler, [key(s.seed, *seed) for seed in seeds])
    noise, groups = starts[::m], [i for i in range(len(each)) for _ in range(m)]
    with torch.no_grad():
        cond, all_conds = sampler.encode(each), sampler.encode([each[i] for i in groups])
    before = sampled(
        sampler,
        starts if compared else noise,
        all_conds if compared else cond,
        batch,
        what="no guidance",
        quiet=run.quiet,
    )
    originals = before[::m] if compared else before
    before = before if compared else originals[groups]  # of starts without an original: never looked at
    evaluate = Evaluation({"metric": metric}, each, originals, judge, truth, batch)
    about = checkpointed({"prompts": list(prompts), **asdict(s), **run.config})
    loop = replace(
        s.loop(folder / "state", run, about | stages.agreed), accumulation=-(-len(starts) // batch)
    )
    judged = None if truth is None else Judged.of(judge, truth[groups], before, s.judge_patience)
    names = [each[i] for i in groups]
    task = Guide(stages, metric, names, starts, all_conds, before, groups, s.white_noise, judged, frames)
    # No weight decay: it would pull the noise towards zero, off its sphere.
    outcome = optimize(
        task,
        lambda leaves: torch.optim.Adam(leaves, s.learning_rate),
        loop,
    )
    chosen = task.chosen(outcome.best_rank)
    best, budget = outcome.best["noise"][chosen], stages.spent(outcome.taken, len(each))
    methods = {
        "no guidance": evaluate(originals, calls=plain_calls),
        "noise": replace(evaluate, originals=before[chosen])(
            sampled(sampler, best, cond, batch, what="noise", quiet=run.quiet),
            outcome.losses,
            budget + plain_calls,
        ),
    }
    others = {"look-ahead": s.ahead.look_ahead, "one step": 1} if s.baselines else {}
    for name, steps in others.items():
        assert isinstance(sampler, FlowSampler)  # else they are refused above
        ahead = _equal(replace(s.ahead, look_ahead=steps), len(sampler.times()) - 1, budget)
        made: list[Guided] = []
        with progress(name, len(each), run.quiet) as bar:
            for part in parts(len(each), batch):
                bound = beside(for_prompts(metric, [each[i] for i in part]), originals[part])
                made.append(guided(sampler, bound, noise[part], rows(cond, part), ahead))
                bar.update(len(part))
        methods[name] = evaluate(torch.cat([part.images for part in made]), calls=made[0].calls)
    costs = {
        "budget": budget,
        "bytes_saved": task.stats.bytes_saved,
        "seconds": time.perf_counter() - began,
    }
    result = GuideResult(folder, folder / "noise.safetensors", methods, costs)
    if Processes.here().first:
        save_noise(result.artefact, best, scheduler=steps_of(sampler), steps=sampler.steps)
        page = Page("adjointdpm guide: generation towards a metric, without training")
        lowest = min(list(methods)[1:], key=lambda name: methods[name].means["metric"])
        noun = NOUNS[sampler.medium]
        page.verdict = verdict_of(result, "metric", lowest, noun, f"with the method “{lowest}”")
        page.text(" ".join(_METHODS[name] for name in methods))
        write_methods(result, page, each, rate=sampler.rate)
        closing = About(
            sampler,
            metric_in_words(metric, run),
            "lower is better",
            "The metric through the decoder and every step of the sampling, with respect to the noise; for the guided "
            "trajectory, through the steps that it looks ahead. Denoiser calls are counted forward and backward, "
            "without recomputation.",
            "the noise of the method “noise”",
            [
                f'noise, about = adjointdpm.load_noise("{result.artefact}")',
                f'adjointdpm sample --prompt "{prompts[0]}" --noise {result.artefact}',
            ],
        )
        write_report("guide", result, about, page, closing, run)
    return result


_METHODS = {
    "no guidance": "“no guidance” is what the prompt and its noise give as they are.",
    "noise": "“noise” moves the initial noise down the metric's gradient, through the whole sampling.",
    "look-ahead": "“look-ahead” moves each state of the trajectory by where the next steps lead.",
    "one step": "“one step” moves it by the prediction of a single step, as DPS and FreeDoM do.",
}


def _equal(ahead: LookAhead, steps: int, budget: int) -> LookAhead:
    """Return the guidance with as many repeats as the budget allows, and fewer steps ahead where it allows not one."""
    once = sum(
        2 * min(ahead.look_ahead, steps - i) for i in range(steps) if ahead.first <= i / steps < ahead.last
    )
    if once > budget and ahead.look_ahead > 1:
        return _equal(replace(ahead, look_ahead=ahead.look_ahead - 1), steps, budget)
    return replace(ahead, repeats=max(1, round(budget / once)))
