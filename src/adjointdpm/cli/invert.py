"""`adjointdpm invert`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from .._types import InputError, Range
from ..metrics import Pixels
from ..samplers.base import Sampler
from ..tasks.invert.invert import InvertSettings, check_distance
from ..tasks.invert.invert import invert as run_invert
from ..tasks.invert.learned_token import EffectGoal, PromptGoal, PromptRows, TokenVectors
from .flags import ForBundled, Given, PromptTexts
from .options import (
    FeatureOptions,
    ModelOptions,
    OutputOptions,
    TaskOptions,
    announce,
    check_networks,
    judge_of,
)
from .parse_metric import Networks, guarded_effect, metric_of
from .parse_sampler import check_memory

__all__ = ["Invert", "InvertOptions"]


@dataclass(frozen=True, kw_only=True)
class InvertOptions(TaskOptions):
    """Which effect is learned, and how.

    Args:
        prompt: Prompt to train on, with the new word in it. May be repeated, or be a file of prompts.
        validation_prompt: Prompt to report on, with the new word in it. May be repeated, or be a file of prompts.
        target_word: Known word whose effect on prompts is learned.
        target_effect: Image effect that is learned, such as sepia, night or kornia:MODULE.FUNCTION.
        learn: What is learned: token (portable) or rows (of the encoded prompt).
        placeholder_token: New word, as it stands in the prompts.
        initializer_token: Known word from which the new one starts.
        num_vectors: Number of tokens that the new word stands for.
        metric: Distance to the target, as [weight*]kind: pixels (the default), content or 0.1*content. May be
            repeated; the distances are added up.
        judge: Classifier that names the effect; none for no judge.
        label: Label that the judge should give the images.
    """

    validation_prompt: Annotated[tuple[str, ...], PromptTexts()]
    target_word: str | None = None
    target_effect: str | None = None
    learn: Literal["token", "rows"] = "token"
    placeholder_token: str = "<effect>"
    initializer_token: str = "a"
    num_vectors: Annotated[int, Range(1, 512)] = 1
    metric: tuple[str, ...] = ()
    judge: Annotated[str | None, ForBundled("emoji/judge/style", "none")] = None
    label: str | None = None


@dataclass(frozen=True)
class Invert:
    """The flags of `adjointdpm invert`."""

    task: InvertOptions
    networks: FeatureOptions
    model: ModelOptions
    optimization: InvertSettings = InvertSettings(train_batch_size=8)
    output: OutputOptions = OutputOptions(Path("outputs/invert"))

    def run(self, given: Given) -> None:
        """Learn a word, and report what it does.

        Raises:
            InputError: A flag contradicts another one, or cannot be used.
        """
        task, loop = self.task, self.optimization
        self._check(given)
        goal = (
            PromptGoal(task.target_word)
            if task.target_word
            else EffectGoal(guarded_effect(task.target_effect or ""))
        )
        folder, run = self.output.start(given)
        sampler = self.model.sampler()
        images = (2 * len(task.prompt) + len(task.validation_prompt)) * loop.num_validation_images
        check_memory(sampler, images, loop.train_batch_size or images)
        networks = self.networks.networks(sampler)
        distance = self._distance(networks)
        check_networks(given, networks)
        judge = None if task.label is None else judge_of(task.judge, sampler)
        found = run_invert(
            sampler,
            self._learned(sampler),
            goal,
            task.prompt,
            task.validation_prompt,
            token=task.placeholder_token,
            output=folder,
            settings=loop,
            distance=distance,
            judge=judge,
            label=task.label,
            run=run,
        )
        for name, each in found.reports.items():
            judged = "" if each.judged is None else f"; recognized: {each.judged}"
            announce(f"{name}: {each.distance_before:.4f} to {each.distance_after:.4f}{judged}")
        announce(f"word: {found.artefact.resolve()}", f"page: {(folder / 'index.html').resolve()}")

    def _check(self, given: Given) -> None:
        """Refuse flags that contradict one another, or that would be ignored.

        Raises:
            InputError: such flags were given.
        """
        task = self.task
        if (task.target_word is None) == (task.target_effect is None):
            raise InputError("give --target_word or --target_effect: what the new word is to do")
        if task.learn == "rows":
            given.refuse_unused(("num_vectors",), "with --learn rows, which learns one row for the word")
        if task.label is None and task.judge != "none":
            given.refuse_unused(("judge",), "without --label, which says what it is to see")
        if task.label is not None and task.judge == "none":
            raise InputError("--label says what the judge is to see; give a --judge, too")

    def _distance(self, networks: Networks) -> Any:
        metrics = self.task.metric
        distance = metric_of(metrics, networks) if metrics else Pixels()
        try:
            check_distance(distance)
        except InputError as error:
            raise InputError(f"--metric {' --metric '.join(metrics)}: {error}") from error
        return distance

    def _learned(self, sampler: Sampler) -> Any:
        task = self.task
        if task.learn == "token":
            return TokenVectors(sampler, task.placeholder_token, task.initializer_token, task.num_vectors)
        return PromptRows(sampler, task.placeholder_token, task.initializer_token)
