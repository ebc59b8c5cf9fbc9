"""`adjointdpm tune`."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from .._types import InputError, Range
from ..samplers.flow_sampler import FlowSampler
from ..tasks.tune.shard import shard
from ..tasks.tune.trainable_weights import Lora, Subset
from ..tasks.tune.tune import TuneSettings
from ..tasks.tune.tune import tune as run_tune
from .flags import Given, LabelsOf, PromptTexts
from .options import (
    MetricOptions,
    ModelOptions,
    NetworkOptions,
    OutputOptions,
    announce_methods,
    check_networks,
    judge_of,
)
from .parse_metric import image_option, metric_of
from .parse_sampler import check_memory

__all__ = ["Tune", "TuneOptions"]


@dataclass(frozen=True, kw_only=True)
class TuneOptions(MetricOptions):
    """What is trained, towards what.

    Args:
        prompt: Prompt to train on. May be repeated, or be a file of prompts.
        validation_prompt: Prompt to report on. May be repeated, or be a file of prompts.
        validation_metric: Metric that validations lower, such as a judge's that is in no loss: it decides which weights
            are kept, and when --patience ends the training. May be repeated; the trained metric by default.
        measure: Metric to report. May be repeated; the trained metric is reported by default.
        instance_image: Image file on which the denoising loss is tried, too.
        instance_prompt: Prompt that describes the instance image.
        rank: Rank of the LoRA.
        lora_alpha: Scale of the LoRA, above 0; its rank by default.
        lora_layers: End of the names of layers that get a LoRA. May be repeated.
        weights: Pattern of names of weights to train instead of a LoRA. May be repeated.
        shard: Spread the frozen network over the processes of torchrun, for one that is larger than a device.
        label: Label that the judge should give the images of a validation prompt. May be repeated, once per prompt, or
            be the column label of the file of validation prompts.
    """

    validation_prompt: Annotated[tuple[str, ...], PromptTexts()]
    label: Annotated[tuple[str, ...], LabelsOf("validation_prompt")] = ()
    validation_metric: tuple[str, ...] = ()
    measure: tuple[str, ...] = ()
    instance_image: str | None = None
    instance_prompt: str = ""
    rank: Annotated[int, Range(1, 1024)] = Lora.rank
    lora_alpha: Annotated[float | None, Range(0, open_low=True)] = Lora.lora_alpha
    lora_layers: tuple[str, ...] = ()
    weights: tuple[str, ...] = ()
    shard: bool = False


@dataclass(frozen=True)
class Tune:
    """The flags of `adjointdpm tune`."""

    task: TuneOptions
    networks: NetworkOptions
    model: ModelOptions
    optimization: TuneSettings = TuneSettings(train_batch_size=4)
    output: OutputOptions = OutputOptions(Path("outputs/tune"))

    def run(self, given: Given) -> None:
        """Train weights, and report what changed.

        Raises:
            InputError: A flag contradicts another one, or cannot be used.
        """
        task, loop = self.task, self.optimization
        self._check(given)
        folder, run = self.output.start(given)
        sampler = (replace(self.model, device="cpu") if task.shard else self.model).sampler()
        if task.shard:
            shard(sampler, text_device=self.model.text_device)
        if task.instance_image is not None and not isinstance(sampler, FlowSampler):
            raise InputError(
                "--instance_image needs our own steps, not the pipeline's; choose another --solver"
            )
        held_out = len(task.validation_prompt) * loop.num_validation_images
        check_memory(sampler, held_out, loop.train_batch_size or held_out)
        networks = self.networks.networks(sampler)
        trained = metric_of(task.metric, networks)
        measures = {text: metric_of([text], networks) for text in task.measure}
        validation = metric_of(task.validation_metric, networks) if task.validation_metric else None
        check_networks(given, networks)
        lora = Lora(task.rank, task.lora_alpha, task.lora_layers or Lora.lora_layers)
        found = run_tune(
            sampler,
            trained,
            task.prompt,
            task.validation_prompt,
            output=folder,
            weights=Subset(task.weights) if task.weights else lora,
            settings=loop,
            measures=measures or {" + ".join(task.metric): trained},
            validation_metric=validation,
            instance_image=None if task.instance_image is None else image_option(task.instance_image),
            instance_prompt=task.instance_prompt,
            judge=judge_of(task.judge, sampler),
            labels=task.label or None,
            run=run,
        )
        announce_methods(found, "weights")

    def _check(self, given: Given) -> None:
        """Refuse flags that would be ignored."""
        if self.task.weights:
            given.refuse_unused(
                ("rank", "lora_alpha", "lora_layers"), "where --weights are trained instead of a LoRA"
            )
        if self.optimization.loss == "reward":
            given.refuse_unused(
                ("reward_scale", "matching_steps"), "without --loss matching or --loss value-matching"
            )
        if self.task.instance_image is None:
            given.refuse_unused(("instance_prompt",), "without --instance_image")
        if self.task.judge == "none":
            given.refuse_unused(("label",), "without a judge")
