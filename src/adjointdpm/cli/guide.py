"""`adjointdpm guide`."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from .._types import InputError
from ..tasks.guide.guide import GuideSettings
from ..tasks.guide.guide import guide as run_guide
from ..tasks.guide.look_ahead import LookAhead
from .flags import Given, Group
from .options import (
    MetricOptions,
    ModelOptions,
    NetworkOptions,
    OutputOptions,
    announce_methods,
    check_calls,
    check_networks,
    judge_of,
)
from .parse_metric import metric_of
from .parse_sampler import check_memory

__all__ = ["Guide"]


@dataclass(frozen=True)
class Guide:
    """The flags of `adjointdpm guide`."""

    task: MetricOptions
    networks: NetworkOptions
    model: ModelOptions
    trajectory: Annotated[LookAhead, Group(without=("repeats", "first", "last"))] = GuideSettings().ahead
    optimization: Annotated[GuideSettings, Group(without=("ahead",))] = GuideSettings()
    output: OutputOptions = OutputOptions(Path("outputs/guide"))

    def run(self, given: Given) -> None:
        """Guide images, and report what each method reached.

        Raises:
            InputError: A flag contradicts another one, or cannot be used.
        """
        task, settings = self.task, replace(self.optimization, ahead=self.trajectory)
        if self.model.solver == "pipeline" and settings.baselines:
            raise InputError(
                "guide's baselines need our own steps, not the pipeline's scheduler; give --no_baselines, or choose "
                "another --solver"
            )
        if task.judge == "none":
            given.refuse_unused(("label",), "without a judge")
        if not settings.baselines:
            given.refuse_unused(
                ("look_ahead", "strength", "target"), "with --no_baselines, which leaves out the look-ahead"
            )
        check_calls(given)
        folder, run = self.output.start(given)
        sampler = self.model.sampler()
        starts = len(task.prompt) * settings.num_validation_images * settings.best_of
        check_memory(sampler, starts, settings.train_batch_size)
        networks = self.networks.networks(sampler)
        metric = metric_of(task.metric, networks)
        check_networks(given, networks)
        found = run_guide(
            sampler,
            metric,
            task.prompt,
            output=folder,
            settings=settings,
            judge=judge_of(task.judge, sampler),
            labels=task.label or None,
            run=run,
        )
        announce_methods(found, "noise")
