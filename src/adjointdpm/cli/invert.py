"""`adjointdpm invert`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch

from .._types import InputError, Range
from ..metrics import Pixels
from ..samplers.base import Sampler
from ..tasks.invert.goals import EffectGoal, Goal, ImageGoal, MetricGoal, PromptGoal, check_distance
from ..tasks.invert.invert import InvertSettings
from ..tasks.invert.invert import invert as run_invert
from ..tasks.invert.learned_token import PromptRows, TokenVectors
from .flags import ForBundled, Given, PromptTexts
from .options import (
    ModelOptions,
    NetworkOptions,
    OutputOptions,
    TaskOptions,
    announce,
    check_networks,
    judge_of,
)
from .parse_metric import Networks, guarded_effect, image_folder, image_option, metric_of
from .parse_sampler import check_memory

__all__ = ["Invert", "InvertOptions"]

GOALS = ("metric", "target_word", "target_effect", "target_images")


@dataclass(frozen=True, kw_only=True)
class InvertOptions(TaskOptions):
    """Which effect is learned, and how. One of --metric, --target_word, --target_effect and --target_images is needed.

    Args:
        prompt: Prompt to train on, with the new token in it. May be repeated, or be a file of prompts.
        validation_prompt: Prompt to report on, with the new token in it. May be repeated, or be a file of prompts.
        metric: Metric to lower, as [weight*]kind[:argument], such as "style:effect.png" or "0.3*content"; content,
            pixels and effect compare with the image without the token. May be repeated; the metrics are added up.
        target_word: Known word whose effect on prompts is learned.
        target_effect: Image effect that is learned, such as sepia, night or kornia:MODULE.FUNCTION.
        target_images: Folder of images to reach, in the order of their sorted names, one for each prompt and noise that
            is trained on. A run saves those without the token in its folder without-token, to be edited.
        distance: Distance to the targets, as [weight*]kind: pixels, content or 0.1*content. May be repeated; the
            distances are added up. Pixels are compared by default.
        learn: What is learned: token (portable) or rows (of the encoded prompt).
        placeholder_token: New token, as it stands in the prompts.
        initializer_token: Known word from which the new token starts. May be repeated: then it starts from the word
            whose images have the lowest metric, or whose short run has, with --num_starts.
        num_vectors: Number of vectors of the new token.
        judge: Classifier that names the effect; none for no judge.
        label: Label that the judge should give the images.
    """

    validation_prompt: Annotated[tuple[str, ...], PromptTexts()]
    metric: tuple[str, ...] = ()
    target_word: str | None = None
    target_effect: str | None = None
    target_images: str | None = None
    distance: tuple[str, ...] = ()
    learn: Literal["token", "rows"] = "token"
    placeholder_token: str = "<effect>"
    initializer_token: tuple[str, ...] = ("a",)
    num_vectors: Annotated[int, Range(1, 512)] = 1
    judge: Annotated[str | None, ForBundled("emoji/judge/style", "none")] = None
    label: str | None = None


@dataclass(frozen=True)
class Invert:
    """The flags of `adjointdpm invert`."""

    task: InvertOptions
    networks: NetworkOptions
    model: ModelOptions
    optimization: InvertSettings = InvertSettings(train_batch_size=8)
    output: OutputOptions = OutputOptions(Path("outputs/invert"))

    def run(self, given: Given) -> None:
        """Learn a token, and report what it does.

        Raises:
            InputError: A flag contradicts another one, or cannot be used.
        """
        task, loop = self.task, self.optimization
        self._check(given)
        folder, run = self.output.start(given)
        sampler = self.model.sampler()
        images = (2 * len(task.prompt) + len(task.validation_prompt)) * loop.num_validation_images
        check_memory(sampler, images, loop.train_batch_size or images)
        networks = self.networks.networks(sampler)
        goal = self._goal(networks)
        check_networks(given, networks)
        found = run_invert(
            sampler,
            self._learned(sampler),
            goal,
            task.prompt,
            task.validation_prompt,
            token=task.placeholder_token,
            output=folder,
            settings=loop,
            judge=judge_of(task.judge, sampler),
            label=task.label,
            run=run,
        )
        for each in found.starts:
            after = "" if each.metric_after is None else f"; {each.metric_after:.4f} after a short run"
            if each.chosen:
                announce(
                    f"started from {each.word!r}, the best of {len(found.starts)} words: {each.metric:.4f}{after}"
                )
        for name, each in found.reports.items():
            values = (each.metric_before, each.metric_after)
            metric = "no target" if None in values else "{:.4f} to {:.4f}".format(*values)
            judged = "" if each.judged is None else f"; recognized: {each.judged}"
            named = ", ".join(f"{label} {count}" for label, count in (each.named or {}).items())
            announce(f"{name}: {metric}{judged}" + (f"; the judge names: {named}" if named else ""))
        announce(f"token: {found.artefact.resolve()}", f"page: {(folder / 'index.html').resolve()}")

    def _check(self, given: Given) -> None:
        """Refuse flags that contradict one another, or that would be ignored.

        Raises:
            InputError: such flags were given.
        """
        task = self.task
        goals = [f"--{name}" for name in GOALS if getattr(task, name)]
        if len(goals) != 1:
            raise InputError(
                f"{' and '.join(goals) or 'no goal'} was given, but a token is learned from one goal; give one of "
                "--metric (such as style:image.png), --target_word, --target_effect and --target_images"
            )
        if task.metric:
            given.refuse_unused(("distance",), "with --metric, which is the whole goal")
        if task.target_effect:
            guarded_effect(task.target_effect)
        words, starts = task.initializer_token, self.optimization.num_starts
        if starts > max(1, len(words)):
            raise InputError(
                f"--num_starts is {starts}, but {len(words)} initial word{'s are' if len(words) > 1 else ' is'} given; "
                "give as many words or more, each with --initializer_token"
            )
        if starts == 1:
            given.refuse_unused(("start_steps",), "without --num_starts of 2 or more")
        if task.learn == "rows":
            given.refuse_unused(("num_vectors",), "with --learn rows, which learns one row for the token")
        if task.label is not None and task.judge == "none":
            raise InputError("--label says what the judge is to see; give a --judge, too")
        if task.target_images:
            number = len(task.prompt) * self.optimization.num_validation_images
            paths = image_folder(task.target_images)
            if len(paths) != number:
                raise InputError(
                    f"--target_images {task.target_images} holds {len(paths)} images, but {len(task.prompt)} prompts "
                    f"with {self.optimization.num_validation_images} noises each need {number}; add or remove images, "
                    "or change --num_validation_images"
                )

    def _goal(self, networks: Networks) -> Goal:
        """Return the goal that the flags describe.

        Raises:
            InputError: A metric, an effect or an image cannot be used.
        """
        task = self.task
        if task.metric:
            return MetricGoal(metric_of(task.metric, networks))
        distance = self._distance(networks)
        if task.target_word:
            return PromptGoal(task.target_word, distance)
        if task.target_effect:
            return EffectGoal(guarded_effect(task.target_effect), distance)
        if networks.sampler.medium != "image":
            raise InputError(
                f"--target_images are images, but the model makes {networks.sampler.medium}; give --metric, "
                "--target_word or --target_effect"
            )
        size = networks.sampler.image_shape[1:]
        images = [image_option(str(path), size) for path in image_folder(task.target_images or "")]
        return ImageGoal(torch.stack(images), distance)

    def _distance(self, networks: Networks) -> Any:
        distances = self.task.distance
        distance = metric_of(distances, networks) if distances else Pixels()
        try:
            check_distance(distance)
        except InputError as error:
            raise InputError(f"--distance {' --distance '.join(distances)}: {error}") from error
        return distance

    def _learned(self, sampler: Sampler) -> Any:
        task = self.task
        if task.learn == "token":
            return TokenVectors(sampler, task.placeholder_token, task.initializer_token, task.num_vectors)
        return PromptRows(sampler, task.placeholder_token, task.initializer_token)
