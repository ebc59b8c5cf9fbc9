"""Tune weights to a metric: a style from one image, say, without losing what a prompt asks for.

    tune(sampler, Style(features, image) + 0.3 * Content(features), prompts, held_out, output=folder)

Everything that is reported is of prompts and noise that were not trained on, beside no tuning and beside the same
weights trained on the one image with the ordinary denoising loss.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import torch
from torch import Tensor

from ..._types import Cond, InputError, Range, check_settings
from ...files.diffusers_files import unwrapped
from ...files.images import output_folder
from ...metrics import beside
from ...metrics.check import check_metric
from ...metrics.image_classifier import Classifier
from ...optimization.distributed import Processes
from ...optimization.loop import optimize
from ...optimization.run_folder import alone
from ...optimization.seeds import key
from ...optimization.task import Loop, Task
from ...samplers.base import Sampler
from ...samplers.flow_sampler import FlowSampler
from ..evaluation import Rate, labels_of, predict
from ..sampling import network_of, noise_of, pipeline_of, sampled, saved
from .adapters import NetworkState
from .denoising_loss import Denoise, latents_of
from .result import Tuned, TuneResult, write_tuning
from .trainable_weights import Lora, Weights
from .tune_to_metric import TuneToMetric

__all__ = ["TuneSettings", "tune"]


@dataclass(frozen=True)
class TuneSettings:
    """What a tuning does.

    Args:
        max_train_steps: Number of optimization steps.
        learning_rate: Step length of the optimizer (Adam), above 0.
        train_batch_size: Number of prompts for each step; all of them if it is not given.
        max_grad_norm: Norm to which longer gradients are scaled down.
        num_validation_images: Number of images for each validation prompt.
        validation_steps: Number of steps between validations, which choose the best iterate.
        seed: Random seed.
        checkpointing_steps: Number of steps between checkpoints; 0 saves only at the end.
    """

    max_train_steps: Annotated[int, Range(1)] = 100
    learning_rate: Annotated[float, Range(0, open_low=True)] = 1e-3
    train_batch_size: Annotated[int | None, Range(1)] = None
    max_grad_norm: Annotated[float, Range(0, 10**9, open_low=True)] = 1.0
    num_validation_images: Annotated[int, Range(1)] = 2
    validation_steps: Annotated[int, Range(1)] = 10
    seed: Annotated[int, Range(0, 2**63 - 1)] = 0
    checkpointing_steps: Annotated[int, Range(0)] = 10

    def __post_init__(self) -> None:
        check_settings(self)


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
    instance_image: Tensor | None = None,
    instance_prompt: str = "",
    judge: Classifier | None = None,
    labels: Sequence[str] | None = None,
    resume: bool = False,
    quiet: bool = False,
    config: Mapping[str, Any] | None = None,
    repeat: str = "",
    report: Callable[[int, dict[str, float]], None] | None = None,
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
        output: a folder for the weights, the images, result.json and the page.
        weights: a LoRA by default.
        settings: how.
        measures: reported by name; {"metric": metric} by default.
        instance_image: (3, height, width) in [0, 1]; if given, the denoising loss on it is tried, too.
        instance_prompt: what it is called there.
        judge: a classifier that says what held-out images show, never part of a loss.
        labels: the judge's label of each held-out prompt; found in the prompts by default.
        resume, quiet, config, repeat, report: as of `audit`.

    Raises:
        InputError: no prompts, a metric that cannot be differentiated, no such weights, an unknown label, a
            folder that cannot be written, a checkpoint of another run.
    """
    if not prompts or not held_out:
        raise InputError("tuning needs prompts to train on, and others to report on")
    folder, settings, began = output_folder(output), settings or TuneSettings(), time.perf_counter()
    weights, measures = weights or Lora(), dict(measures or {"metric": metric})
    truth = None if judge is None else torch.tensor(labels_of(judge, held_out, labels))
    pipe, network = pipeline_of(sampler), network_of(sampler)
    if instance_image is not None:
        latents_of(sampler, instance_image)
    like = sampler.noise(1)
    grey = torch.full((1, *sampler.image_shape), 0.5, dtype=like.dtype, device=like.device)
    for each in (metric, *measures.values()):
        check_metric(beside(each, grey), sampler.image_shape, 1, like)
    before = NetworkState.of(unwrapped(network))
    # Weights that cannot be attached or saved are an error before the work.
    with _training(weights, network, settings.seed, before) as leaves, TemporaryDirectory() as trial:
        weights.save(Path(trial), pipe, leaves)
    about = {"weights": repr(weights), "prompts": list(prompts), **asdict(settings), **(config or {})}
    about.pop("checkpointing_steps")
    noise = noise_of(
        sampler,
        [
            key(settings.seed, "held out", i, j)
            for i in range(len(held_out))
            for j in range(settings.num_validation_images)
        ],
    )
    with torch.no_grad():
        cond = sampler.encode([each for each in held_out for _ in range(settings.num_validation_images)])
    batch = settings.train_batch_size or len(prompts)
    exam = _Exam(sampler, noise, cond, measures, judge, truth, settings.num_validation_images, batch)
    ways = {"untuned": exam.taken([])}

    def trained(name: str, task: Task) -> list[float]:
        loop = Loop(
            steps=settings.max_train_steps,
            batch_size=settings.train_batch_size,
            max_grad_norm=settings.max_grad_norm,
            validation_steps=settings.validation_steps,
            decay="cosine",
            seed=settings.seed,
            folder=output_folder(folder / "state" / name),
            checkpointing_steps=settings.checkpointing_steps,
            resume=resume,
            quiet=quiet,
            config={**about, "way": name},
            report=report if name == "metric" else None,
        )
        return optimize(task, lambda leaves: torch.optim.Adam(leaves, settings.learning_rate), loop).losses

    if instance_image is not None and isinstance(sampler, FlowSampler):
        with _training(weights, network, settings.seed, before) as leaves:
            task = Denoise(sampler, instance_image.to(like), instance_prompt, leaves, batch, settings.seed)
            losses = trained("denoising", task)
            ways["denoising"] = exam.taken(losses)
    with _training(weights, network, settings.seed, before, keep=True) as leaves:
        losses = trained("metric", TuneToMetric(sampler, metric, prompts, leaves, settings.seed, batch))
        ways["metric"] = exam.taken(losses)
        costs = {**exam.costs(metric, leaves), "seconds": time.perf_counter() - began}
        costs["weights"] = sum(leaf.numel() for leaf in leaves.values())
        artefact = weights.save(folder, pipe, leaves) if Processes.here().first else folder
    result = TuneResult(folder, artefact, ways, costs)
    if Processes.here().first:
        write_tuning(
            result,
            about,
            [each for each in held_out for _ in range(settings.num_validation_images)],
            repeat,
            instance_image,
        )
    return result


@contextmanager
def _training(
    weights: Weights, network: Any, seed: int, before: NetworkState, keep: bool = False
) -> Iterator[dict[str, Tensor]]:
    """The leaves; afterwards the network is as it was before, or keeps what was learned if there was no error."""
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


@dataclass(frozen=True, eq=False)
class _Exam:
    """What every way of tuning is asked, the same for all."""

    sampler: Sampler
    noise: Tensor
    cond: Cond
    measures: dict[str, Any]
    judge: Classifier | None
    truth: Tensor | None
    noises: int
    batch: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "originals", sampled(self.sampler, self.noise, self.cond, self.batch))

    def taken(self, losses: list[float]) -> Tuned:
        """Images of the network as it is now, and what is said about them."""
        images = sampled(self.sampler, self.noise, self.cond, self.batch)
        originals: Tensor = self.__dict__["originals"]
        distances = {}
        with torch.no_grad():
            for name, metric in self.measures.items():
                parts = zip(images.split(self.batch), originals.split(self.batch), strict=True)
                distances[name] = float(torch.cat([beside(metric, o)(i) for i, o in parts]).mean())
        judged = None
        if self.judge is not None and self.truth is not None:
            says = predict(self.judge, saved(images)).argmax(1).cpu()
            judged = Rate.of_mask(says == self.truth.repeat_interleave(self.noises))
        return Tuned(images, distances, judged, losses)

    def costs(self, metric: Any, leaves: Mapping[str, Tensor]) -> dict[str, Any]:
        """Of one image's gradient."""
        cond = self.cond.map(lambda tensor: tensor[:1] if tensor.ndim else tensor)
        images = self.sampler(self.noise[:1], cond)
        values = beside(metric, self.__dict__["originals"][:1])(images)
        torch.autograd.grad(values.sum(), list(leaves.values()), allow_unused=True)
        stats = self.sampler.stats
        return {"calls_an_image": stats.nfe_forward + stats.nfe_backward, "bytes_saved": stats.bytes_saved}
