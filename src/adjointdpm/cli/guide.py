"""`adjointdpm guide`."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from .._types import InputError, Range
from ..samplers.flow_sampler import FlowSampler
from ..tasks.guide.guide import GuideSettings
from ..tasks.guide.guide import guide as run_guide
from ..tasks.guide.look_ahead import LookAhead
from .flags import ForBundled, Given, Internal, PromptTexts
from .options import (
    ModelOptions,
    NetworkOptions,
    OutputOptions,
    agreed,
    announce,
    check_networks,
    judge_of,
    saved,
)
from .parse_metric import metric_of
from .parse_sampler import check_memory

__all__ = ["Guide", "GuideOptions"]


@dataclass(frozen=True)
class GuideOptions:
    """Which images are guided, to what.

    Args:
        metric: Metric to lower, as [weight*]kind[:argument], such as "style:photo.png" or "0.3*content". May be
            repeated; the metrics are added up.
        prompt: Prompt of the images. May be repeated, or be a file of prompts.
        look_ahead: Number of steps that each step of the trajectory looks ahead.
        strength: Length of a move, as a fraction of the noise's norm.
        judge: Classifier that says what images show; none for no judge.
        label: Label that the judge should give the images of a prompt. May be repeated, once per prompt.
    """

    metric: tuple[str, ...]
    prompt: Annotated[tuple[str, ...], PromptTexts()]
    look_ahead: Annotated[int, Range(1, 10_000)] = GuideSettings().ahead.steps
    strength: Annotated[float, Range(0, open_low=True)] = LookAhead.strength
    judge: Annotated[str | None, ForBundled("emoji/judge", "none")] = None
    label: tuple[str, ...] = ()


@dataclass(frozen=True)
class Guide:
    """The flags of `adjointdpm guide`."""

    task: GuideOptions
    networks: NetworkOptions
    model: ModelOptions
    optimization: Annotated[GuideSettings, Internal("ahead")] = GuideSettings()
    output: OutputOptions = OutputOptions(Path("outputs/guide"))

    def run(self, given: Given) -> None:
        """Guide images, and report what each way of guiding reached."""
        task, loop = self.task, self.optimization
        if self.model.solver == "pipeline":
            raise InputError(
                "guide needs our own steps, not the pipeline's scheduler; choose another --solver"
            )
        if task.judge == "none":
            given.refuse_unused(("label",), "without a judge")
        folder, report = self.output.folder(), self.output.reporter()
        sampler = self.model.sampler()
        assert isinstance(sampler, FlowSampler)  # what every other --solver makes
        check_memory(sampler, len(task.prompt) * loop.num_validation_images, loop.train_batch_size)
        networks = self.networks.networks(sampler)
        goal = metric_of(task.metric, networks)
        check_networks(given, networks)
        found = run_guide(
            sampler,
            goal,
            task.prompt,
            output=folder,
            settings=replace(loop, ahead=LookAhead(task.look_ahead, task.strength)),
            judge=judge_of(task.judge, sampler),
            labels=task.label or None,
            resume=self.output.resume,
            config=agreed(given),
            repeat=saved(given, folder),
            report=report,
        )
        for name, way in found.ways.items():
            judged = "" if way.judged is None else f"; concept seen: {way.judged}"
            announce(f"{name}: {float(way.values.mean()):.4f} in {way.calls} calls{judged}")
        announce(f"noise: {found.artefact.resolve()}", f"page: {(folder / 'index.html').resolve()}")
