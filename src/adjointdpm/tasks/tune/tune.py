"""Tune weights to a metric: a style from one image, say, without losing what a prompt asks for.

    tune(sampler, Style(features, image) + 0.3 * Content(features), prompts, held_out, output=folder)

Everything that is reported is of prompts and noise that were not trained on, beside no tuning and beside the same
weights trained on the one image with the ordinary denoising loss.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal, get_args

import torch
from torch import Tensor

from ..._types import Cond, InputError, OneOf, Range
from ...files.atomic_write import write_file
from ...files.diffusers_files import unwrapped
from ...files.films import film
from ...files.html_report import Page, table_of
from ...files.images import as_8_bit, output_folder, png
from ...metrics import beside, for_medium, for_prompts
from ...metrics.image_classifier import Classifier
from ...optimization.distributed import Processes
from ...optimization.loop import optimize
from ...optimization.run_folder import alone
from ...optimization.seeds import key
from ...optimization.task import LoopSettings, RunOptions, Task
from ...samplers.base import Sampler
from ...samplers.flow_sampler import FlowSampler
from ..evaluation import check_on_gray, labels_of
from ..frames import NOUNS, FrameDraws, check_judge
from ..methods import Evaluation, MethodsResult, verdict_of, write_methods
from ..report import About, metric_in_words, write_report
from ..sampling import each_of, network_of, noise_of, pipeline_of, rows, sampled
from ..settings import BatchSettings, Count, Length, checkpointed
from .adapters import NetworkState
from .adjoint_matching import AdjointMatching
from .denoising_loss import Denoise, latents_of
from .learning_rate import Schedule, rate_of
from .reference_distance import ReferenceDistance
from .shard import check_shares, is_sharded
from .trainable_weights import Lora, Weights
from .tune_to_metric import TuneToMetric, needs_own_steps

__all__ = ["TuneResult", "TuneSettings", "tune"]

Loss = Literal["reward", "matching", "value-matching"]
SHOWN = 4  # validation images that are saved as the training goes


@dataclass(frozen=True, kw_only=True)
class TuneSettings(BatchSettings):
    """What a tuning does.

    Args:
        loss: Loss that is lowered: reward (the metric's gradient by the adjoint), matching (adjoint matching), or
            value-matching (its form for the ODE, without noise in the steps).
        reward_scale: Weight of the metric against the distance to the untuned model in both forms of matching.
        matching_steps: Number of steps of each trajectory that both forms of matching regress.
        kl_weight: Weight of the KL divergence from the untuned model, in nats; 0 leaves it out.
        norm_weight: Weight of the share by which the velocity's norm exceeds the untuned model's; 0 leaves it out.
        ema_decay: Decay of a moving average of the weights, which is then validated and saved.
        patience: Number of validations without a better one after which the training stops.
        train_batch_size: Number of prompts that are differentiated at once; all of them if it is not given.
        lr_scheduler: Learning rate over the steps: linear, cosine, cosine_with_restarts, polynomial, constant or
            constant_with_warmup.
        lr_warmup_steps: Number of steps over which the learning rate rises from 0.
        max_grad_norm: Norm to which longer gradients are scaled down.
        num_validation_images: Number of images for each validation prompt.
        validation_steps: Number of steps between validations, which choose the best iterate.
    """

    loss: Loss = "reward"
    reward_scale: Length = 100.0
    matching_steps: Count = 4
    kl_weight: Annotated[float, Range(0)] = 0.0
    norm_weight: Annotated[float, Range(0)] = 0.0
    ema_decay: Annotated[float | None, Range(0, 1)] = None
    patience: Annotated[int | None, Range(1)] = None
    learning_rate: Length = 1e-3
    lr_scheduler: Schedule = "cosine"
    lr_warmup_steps: Annotated[int, Range(0)] = 0
    max_grad_norm: Annotated[float, Range(0, 10**9, open_low=True)] = 1.0
    num_validation_images: Count = 2
    validation_steps: Count = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        self._rate()
        OneOf(get_args(Loss))("loss", self.loss)
        if self.matching is not None and self.guards.used:
            raise InputError(
                "adjoint matching holds the model near the untuned one by itself: lower reward_scale, and leave "
                "kl_weight and norm_weight at 0"
            )

    @property
    def guards(self) -> ReferenceDistance:
        """What keeps the model near the untuned one."""
        return ReferenceDistance(self.kl_weight, self.norm_weight)

    @property
    def matching(self) -> AdjointMatching | None:
        """The loss of adjoint matching, where it is asked for."""
        if self.loss == "reward":
            return None
        return AdjointMatching(self.reward_scale, self.matching_steps, self.loss == "matching")

    def loop(self, folder: Path, run: RunOptions, config: Mapping[str, Any]) -> LoopSettings:
        return replace(
            super().loop(folder, run, config),
            schedule=self._rate(),
            max_grad_norm=self.max_grad_norm,
            ema_decay=self.ema_decay,
            patience=self.patience,
            validation_steps=self.validation_steps,
        )

    def _rate(self) -> Callable[[int], float]:
        OneOf(get_args(Schedule))("lr_scheduler", self.lr_scheduler)
        return rate_of(self.lr_scheduler, self.learning_rate, self.lr_warmup_steps, self.max_train_steps)


@dataclass(frozen=True, eq=False)
class TuneResult(MethodsResult):
    """What "untuned", "metric" and, where it was asked for, "denoising" made; the weights are in `artefact`."""


@alone
def tune(
    sampler: Sampler,
    metric: Any,
    prompts: Sequence[str],
    held_out: Sequence[str],
    *,
    output: str | Path,
    weights: Weights | None = None,
    settings: TuneSettings | None = None,
    measures: Mapping[str, Any] | None = None,
    validation_metric: Any = None,
    instance_image: Tensor | None = None,
    instance_prompt: str = "",
    judge: Classifier | None = None,
    labels: Sequence[str] | None = None,
    run: RunOptions = RunOptions(),
) -> TuneResult:
    """Train weights of the denoiser for a metric of the finished image. The sampler is tuned afterwards.

    Adapters that are loaded before stay loaded and active with their scales: while training, in the untuned model's
    images and afterwards. A new LoRA stays active beside them, or fused where they are fused; its file holds it
    alone. All other flags and modes of the network are as before; after an error, everything is.

    Args:
        sampler: over a pipeline.
        metric: what is lowered; `metrics.Content` and other paired metrics see the untuned model's image.
        prompts: trained on, with fresh noise a step.
        held_out: reported on, with noise of their own.
        output: a folder for the weights, the images, result.json and the page; the first images of held-out prompts are
            saved in `validation` at each validation, and a LoRA of a UNet in kohya's layout beside diffusers'.
        weights: a LoRA by default.
        settings: how.
        measures: reported by name; {"metric": metric} by default.
        validation_metric: what validations on the prompts lower, by which the best weights are kept and `patience` ends
            the training; the metric itself by default. Against hacking, a judge that is in no loss.
        instance_image: (3, height, width) in [0, 1]; if given, the denoising loss on it is tried, too.
        instance_prompt: what it is called there.
        judge: a classifier that says what held-out images show, never part of a loss.
        labels: the judge's label of each held-out prompt; found in the prompts by default.
        run: whether the run is resumed, and what it reports.

    Returns:
        TuneResult: the held-out images of the untuned and the tuned model, and what was measured of them.

    Raises:
        InputError: no prompts, a metric that cannot be differentiated, no such weights, an unknown label, a
            folder that cannot be written, a checkpoint of another run.
    """
    if not prompts or not held_out:
        raise InputError("tuning needs prompts to train on, and others to report on")
    folder, settings, began = output_folder(output), settings or TuneSettings(), time.perf_counter()
    check_judge(sampler, judge)
    fit = partial(for_medium, medium=sampler.medium)
    metric, measures = (
        fit(metric),
        {name: fit(each) for name, each in (measures or {"metric": metric}).items()},
    )
    validation_metric = None if validation_metric is None else fit(validation_metric)
    weights = weights or Lora()
    FrameDraws(sampler, settings.frames_per_step, settings.seed, metric)  # an error before the work
    n, batch = settings.num_validation_images, settings.train_batch_size or len(prompts)
    truth = None if judge is None else torch.tensor(labels_of(judge, held_out, labels)).repeat_interleave(n)
    pipe, network = pipeline_of(sampler), network_of(sampler)
    if settings.guards.used or settings.matching is not None:
        needs_own_steps(sampler)
    if instance_image is not None:
        latents_of(sampler, instance_image)
    if is_sharded(unwrapped(network)) and not isinstance(weights, Lora):
        raise InputError(
            "of a sharded network only a LoRA can be trained, since it is whole in each process"
        )
    images = {"the number of validation images (prompts times num_validation_images)": len(held_out) * n}
    check_shares(unwrapped(network), train_batch_size=batch, **images)
    judges = [] if validation_metric is None else [validation_metric]
    check_on_gray(sampler, [*prompts, *held_out], metric, *judges, *measures.values())
    before = NetworkState.of(unwrapped(network))
    # Weights that cannot be attached or saved are an error before the work.
    with _training(weights, network, settings.seed, before) as leaves, TemporaryDirectory() as trial:
        weights.save(Path(trial), pipe, leaves)
    about = checkpointed(
        {"weights": repr(weights), "prompts": list(prompts), **asdict(settings), **run.config}
    )
    numbers = [(i, j) for i in range(len(held_out)) for j in range(n)]
    noise = noise_of(sampler, [key(settings.seed, "held out", i, j) for i, j in numbers])
    with torch.no_grad():
        cond = sampler.encode(each_of(held_out, n))
    originals = sampled(sampler, noise, cond, batch, what="untuned", quiet=run.quiet)
    evaluate = Evaluation(measures, each_of(held_out, n), originals, judge, truth, batch)
    methods = {"untuned": evaluate(originals)}

    def train(name: str, task: Task) -> None:
        own = replace(run, report=run.report if name == "metric" else None)
        loop = settings.loop(folder / "state" / name, own, {**about, "method": name})
        outcome = optimize(task, lambda leaves: torch.optim.Adam(leaves, settings.learning_rate), loop)
        images = sampled(sampler, noise, cond, batch, what=f"tuned ({name})", quiet=run.quiet)
        methods[name] = evaluate(images, outcome.losses)

    if instance_image is not None and isinstance(sampler, FlowSampler):
        with _training(weights, network, settings.seed, before) as leaves:
            image, draws = instance_image.to(noise), batch * settings.gradient_accumulation_steps
            train("denoising", Denoise(sampler, image, instance_prompt, leaves, draws, settings.seed))
    with _training(weights, network, settings.seed, before, keep=True) as leaves:
        few = list(range(min(SHOWN, len(noise))))

        def show(step: int) -> None:
            # Where calls are shared, unequal numbers of them would wait for each other.
            spread = Processes() if is_sharded(unwrapped(network)) else None
            images = sampled(sampler, noise[few], rows(cond, few), batch, spread)
            if Processes.here().first:
                _save_validation(folder / "validation", step, images, sampler.rate)
                if run.images is not None and sampler.medium != "audio":
                    # Of a video, the frame in the middle.
                    run.images(
                        step, "validation", images[:, images.shape[1] // 2] if images.ndim == 5 else images
                    )

        task = TuneToMetric(
            sampler,
            metric,
            prompts,
            leaves,
            settings.seed,
            batch,
            guards=settings.guards,
            matching=settings.matching,
            validation_metric=validation_metric,
            validated=show,
            frames_per_step=settings.frames_per_step,
        )
        train("metric", task)
        asked = for_prompts(metric, held_out[:1])
        costs = _costs(sampler, asked, noise, cond, originals[:1], leaves)
        artefact = weights.save(folder, pipe, leaves) if Processes.here().first else folder
    costs["seconds"] = time.perf_counter() - began
    result = TuneResult(folder, artefact, methods, costs)
    if Processes.here().first:
        page = Page("adjointdpm tune: weights towards a metric")
        noun = f"{NOUNS[sampler.medium]} of prompts and noise that were not trained on"
        page.verdict = verdict_of(result, next(iter(measures)), "metric", noun, "after the tuning")
        page.text(
            f"{costs['weights']:,} weights were trained for {settings.max_train_steps} steps on {len(prompts)} "
            f"prompt{'s' if len(prompts) > 1 else ''} with fresh noise at each step. All that is shown and measured "
            "below is of prompts and noise that were not trained on: “untuned” is the model as it was, “metric” the "
            "model tuned to the metric."
        )
        if "denoising" in methods:
            page.text(
                "“denoising” is the same weights trained on the one given image with the denoising loss."
            )
        write_methods(result, page, each_of(held_out, n), instance_image, sampler.rate)
        closing = About(
            sampler,
            metric_in_words(metric, run),
            "lower is better",
            "The metric through the decoder and every step of the sampling, with respect to the weights.",
            "the weights",
            weights.loading(artefact),
        )
        write_report("tune", result, about, page, closing, run)
    return result


def _save_validation(folder: Path, step: int, samples: Tensor, rate: float | None) -> None:
    """Save images or videos side by side in one file, and sounds in files of their own."""
    name = f"step_{step:06d}"
    if samples.ndim == 3 and rate is not None:
        table_of(name, samples, [""] * len(samples), rate).save(folder)
        return
    beside_each_other = as_8_bit(torch.cat(list(samples), dim=-1))
    suffix = "png" if rate is None else "webp"
    content = png(beside_each_other) if rate is None else film(beside_each_other, rate)
    write_file(output_folder(folder) / f"{name}.{suffix}", content)


@contextmanager
def _training(
    weights: Weights, network: Any, seed: int, before: NetworkState, keep: bool = False
) -> Iterator[dict[str, Tensor]]:
    """Yield the leaves; afterwards the network is as it was before, or keeps what was learned."""
    leaves = weights.attach(network, seed)
    start = {name: leaf.detach().clone() for name, leaf in leaves.items()}
    done = False
    try:
        yield leaves
        done = keep
    finally:
        if done:
            weights.settle(network, leaves, before)
        else:
            with torch.no_grad():
                for name, leaf in leaves.items():
                    leaf.copy_(start[name])
                    leaf.grad = None
            before.restore()


def _costs(
    sampler: Sampler, metric: Any, noise: Tensor, cond: Cond, original: Tensor, leaves: Mapping[str, Tensor]
) -> dict[str, Any]:
    """Return what one image's gradient takes."""
    values = beside(metric, original)(sampler(noise[:1], rows(cond, [0])))
    torch.autograd.grad(values.sum(), list(leaves.values()), allow_unused=True)
    stats = sampler.stats
    return {
        "calls_an_image": stats.nfe_forward + stats.nfe_backward,
        "bytes_saved": stats.bytes_saved,
        "weights": sum(leaf.numel() for leaf in leaves.values()),
    }
