"""Groups of flags that commands share, named as in diffusers' scripts, and what commands do with them.

The resolved values are saved beside the result, so that `--config OUTPUT/config.yaml` runs the same again.
"""

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml

from .._types import InputError, OneOf, Range
from ..files.atomic_write import write_file
from ..files.checkpoint import check_config
from ..metrics.image_classifier import Classifier
from ..optimization.distributed import Processes
from ..optimization.run_folder import hold_folder
from ..optimization.task import RunOptions
from ..samplers.base import Sampler
from ..tasks.methods import MethodsResult
from .flags import ForBundled, Given, LabelsOf, PromptTexts
from .parse_metric import Networks
from .parse_sampler import SOLVERS, classifier_of, device_of, sampler_of
from .trackers import tracker_of

__all__ = [
    "RESULTS",
    "FolderOptions",
    "MetricOptions",
    "ModelOptions",
    "NetworkOptions",
    "OutputOptions",
    "TaskOptions",
    "announce",
    "announce_methods",
    "check_networks",
    "free_folder",
    "in_one_process",
    "judge_of",
]

RESULTS = ("result.json", "state/**/*.safetensors")
"""What a task leaves in its folder: its result, and checkpoints on the way there."""

# What does not change a result, so that a checkpoint need not agree on it; the steps are among the task's settings.
FREE = ("output_dir", "report_to", "checkpointing_steps", "max_train_steps")


@dataclass(frozen=True)
class ModelOptions:
    """The model, and how it is sampled.

    Args:
        pretrained_model_name_or_path: Bundled model, folder of a pipeline, or name on a hub.
        revision: Branch, tag or commit of a model on a hub.
        variant: Variant of the model's weight files, such as fp16.
        lora: Folder or safetensors file of a LoRA, such as tune wrote, that is loaded into the model.
        learned_embeds: Safetensors file of a learned token, such as invert wrote, that prompts may then use.
        height: Height of the images in pixels; the model's own by default.
        width: Width of the images in pixels; the model's own by default.
        num_frames: Number of frames of the videos; the pipeline's own by default.
        frame_rate: Frames of the videos in a second; the pipeline's own by default, or 8. Wan is made for 16.
        audio_end_in_s: Length of the sound in seconds; the pipeline's own by default.
        num_inference_steps: Number of sampling steps.
        guidance_scale: Weight of classifier-free guidance; there is no guidance at 1 or less. [default: 4 with the
            bundled model, else the pipeline's own]
        negative_prompt: Prompt that all images are guided away from.
        solver: Solver of the sampling ODE: dpm++, euler, midpoint, heun, rk4, ab1 to ab4, or coupled:euler (also
            coupled:midpoint, coupled:heun and coupled:rk4), which is reversible; pipeline stands for the pipeline's
            own scheduler.
        adjoint: How gradients are computed: checkpointed[:keep], checkpointed:8GiB (a budget of memory),
            checkpointed:auto, backprop, reversible (with a coupled solver), truncated:last, coarse[:steps] or
            continuous[:steps].
        mixed_precision: Number format of the network: no, fp16 or bf16.
        device: Device to run on, such as cpu, cuda, cuda:1 or mps; auto takes CUDA, else MPS, else the CPU.
        text_device: Device of the text encoders, such as cuda:1 or cpu; that of the rest by default.
    """

    pretrained_model_name_or_path: str = "emoji"
    revision: str | None = None
    variant: str | None = None
    lora: Path | None = None
    learned_embeds: Path | None = None
    height: Annotated[int | None, Range(1, 16_384)] = None
    width: Annotated[int | None, Range(1, 16_384)] = None
    num_frames: Annotated[int | None, Range(1, 100_000)] = None
    frame_rate: Annotated[float | None, Range(0, 1000, open_low=True)] = None
    audio_end_in_s: Annotated[float | None, Range(0, 100_000, open_low=True)] = None
    num_inference_steps: Annotated[int, Range(1, 10_000)] = 25
    guidance_scale: Annotated[float | None, Range(0, 1000)] = None
    negative_prompt: str = ""
    solver: Annotated[str, OneOf((*SOLVERS, "pipeline"))] = "dpm++"
    adjoint: str = "checkpointed"
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    device: str = "auto"
    text_device: str | None = None

    def sampler(self) -> Sampler:
        """Return the sampler that the flags describe."""
        return sampler_of(
            self.pretrained_model_name_or_path,
            steps=self.num_inference_steps,
            guidance_scale=self.guidance_scale,
            negative_prompt=self.negative_prompt,
            solver=self.solver,
            adjoint=self.adjoint,
            mixed_precision=self.mixed_precision,
            device=self.device,
            text_device=self.text_device,
            revision=self.revision,
            variant=self.variant,
            height=self.height,
            width=self.width,
            num_frames=self.num_frames,
            frame_rate=self.frame_rate,
            audio_end_in_s=self.audio_end_in_s,
            lora=self.lora,
            learned_embeds=self.learned_embeds,
        )


@dataclass(frozen=True)
class FolderOptions:
    """Where results go.

    Args:
        output_dir: Folder for the results.
        overwrite: Write over the results of an earlier run in the folder.
        quiet: Show no progress bars.
        verbose: Say what is done: all settings, the model, validations, checkpoints.
    """

    output_dir: Path
    overwrite: bool = False
    quiet: bool = False
    verbose: bool = False


@dataclass(frozen=True)
class OutputOptions(FolderOptions):
    """Where results and checkpoints go.

    Args:
        resume: Continue from the checkpoints in the folder.
        report_to: Where losses and validation images are logged: none, tensorboard or wandb.
    """

    resume: bool = False
    report_to: Literal["none", "tensorboard", "wandb"] = "none"

    def start(self, given: Given, free: Collection[str] = ("judge",)) -> tuple[Path, RunOptions]:
        """Return the folder, into which the flags are written, and the options of the run.

        Args:
            given: What was given to the command.
            free: Names of further flags that a checkpoint need not agree on, besides `FREE`.

        Raises:
            InputError: The folder holds results or cannot be written to, the run that is to be resumed was made with
                other flags, or the tracker is not installed.
        """
        folder = free_folder(self.output_dir, *RESULTS, resume=self.resume, overwrite=self.overwrite)
        logged = self.report_to != "none" and Processes.here().first
        tracker = tracker_of(self.report_to, self.output_dir) if logged else None
        names = {*FREE, *free}
        agreed = {name: value for name, value in given.resolved().items() if name not in names}
        repeat = _saved(given, folder, agreed, names)
        return folder, RunOptions(
            resume=self.resume,
            quiet=self.quiet,
            report=None if tracker is None else tracker.report,
            images=None if tracker is None else tracker.images,
            config=agreed,
            repeat=repeat,
        )


@dataclass(frozen=True, kw_only=True)
class TaskOptions:
    """Which images a task makes, and who judges them.

    Args:
        prompt: Prompt of the images. May be repeated, be a file of prompts (txt, csv or jsonl), or dataset:NAME for a
            dataset of the package datasets.
        judge: Classifier that says what images show; none for no judge.
    """

    prompt: Annotated[tuple[str, ...], PromptTexts()]
    judge: Annotated[str | None, ForBundled("emoji/judge", "none")] = None


@dataclass(frozen=True, kw_only=True)
class MetricOptions(TaskOptions):
    """The metric of a task and the labels for the judge, beside the prompts.

    Args:
        metric: Metric to lower, as [weight*]kind[:argument], such as "style:photo.png" or "0.3*content". May be
            repeated; the metrics are added up.
        label: Label that the judge should give the images of a prompt. May be repeated, once per prompt, or be the
            column label of the file of prompts.
    """

    metric: tuple[str, ...]
    label: Annotated[tuple[str, ...], LabelsOf("prompt")] = ()


@dataclass(frozen=True)
class NetworkOptions:
    """The networks that metrics may need.

    Args:
        features: Classifier whose features style and content compare.
        layer: Index of a hidden state to compare. May be repeated; the first three are compared by default.
        clip_model: CLIP model for the metrics and rewards of CLIP.
        classifier: Classifier for the metrics label and margin.
        reward_device: Device of the networks of CLIP and of rewards, such as cuda:1; that of the images by default.
    """

    features: Annotated[str | None, ForBundled("emoji/resnet", None)] = None
    layer: Annotated[tuple[int, ...], Range(-1000, 1000)] = ()
    clip_model: Annotated[str | None, ForBundled("emoji/clip", Networks.clip_model)] = None
    classifier: Annotated[str | None, ForBundled("emoji/resnet", None)] = None
    reward_device: str | None = None

    def networks(self, sampler: Sampler) -> Networks:
        """Return the networks."""
        clip = self.clip_model or Networks.clip_model
        place = None if self.reward_device is None else device_of(self.reward_device)
        return Networks(sampler, self.features, self.layer, self.classifier, clip, place)


def in_one_process(command: str) -> None:
    """Refuse a launcher's several processes, which would do the same work and write the same files.

    Raises:
        InputError: there are several processes.
    """
    world = os.environ.get("WORLD_SIZE", "")
    if world not in ("", "1"):
        raise InputError(
            f"{command} runs in one process, but was started in {world}; start it without torchrun"
        )


def free_folder(path: Path, *results: str, resume: bool = False, overwrite: bool = False) -> Path:
    """Return an output folder in which no earlier run left anything that this one would write over.

    Args:
        path: of the folder; made if it is not there.
        results: names of files, or patterns, that a run leaves there.
        resume, overwrite: whether that is wanted.

    Raises:
        InputError: the folder holds results, or cannot be written to.
    """
    folder = hold_folder(path, resume or None)
    there = sorted(each.name for name in results for each in folder.glob(name))
    if there and not (resume or overwrite):
        raise InputError(
            f"the output folder {folder} holds an earlier run ({', '.join(there[:3])}); give another --output_dir, "
            "--resume where the command has it, or --overwrite"
        )
    return folder


def announce(*lines: str) -> None:
    """Print lines, in one of several processes."""
    if Processes.here().first:
        print("\n".join(lines))


def _saved(given: Given, folder: Path, agreed: dict[str, Any], free: Collection[str]) -> str:
    """Return the command that repeats the run, after the flags were saved.

    Raises:
        InputError: The run that is to be resumed was made with other flags, which stay as they are in the file.
    """
    path = folder / "config.yaml"
    if given.values["resume"] and path.exists():
        before, steps = _read_saved(path), given.values.get("max_train_steps")
        check_config(path, before, agreed, free=free)
        if (
            steps is not None
            and isinstance(before.get("max_train_steps"), int)
            and steps < before["max_train_steps"]
        ):
            raise InputError(
                f"{path} was made with max_train_steps = {before['max_train_steps']}, and --resume goes on to as many "
                f"steps or more, but this run has {steps}"
            )
    if not Processes.here().first:
        return ""
    write_file(path, given.as_yaml().encode())
    return f"adjointdpm {given.command} --config {path}"


def announce_methods(found: MethodsResult, what: str) -> None:
    """Print what every method reached, and where the files are.

    Args:
        found: What a task returned.
        what: The noun for what was learned.
    """
    for name, each in found.methods.items():
        calls = "" if each.calls is None else f" in {each.calls} calls"
        judged = "" if each.judged is None else f"; recognized: {each.judged}"
        announce(f"{name}: {', '.join(f'{k} {v:.4f}' for k, v in each.means.items())}{calls}{judged}")
    announce(f"{what}: {found.artefact.resolve()}", f"page: {(found.folder / 'index.html').resolve()}")


def check_calls(given: Given) -> None:
    """Refuse a number of steps beside a number of denoiser calls, and patience without a judge."""
    if given.values["calls"] is not None:
        given.refuse_unused(("max_train_steps",), "with --calls, from which the number of steps follows")
    if given.values["judge"] == "none":
        given.refuse_unused(("judge_patience",), "without a judge")


def check_networks(given: Given, networks: Networks) -> None:
    """Refuse flags of networks that no metric needs."""
    names = {"features", "layer", "classifier", "clip_model", "reward_device"} & set(given.values)
    given.refuse_unused(sorted(names - networks.used), "by these metrics")


def judge_of(name: str | None, sampler: Sampler) -> Classifier | None:
    """Return the judge that a flag names."""
    if name is None or name == "none":
        return None
    return classifier_of(name, sampler.noise(1).device, sampler.image_shape)


def _read_saved(path: Path) -> dict[str, Any]:
    """Return the flags that `saved` wrote.

    Raises:
        InputError: the file is damaged.
    """
    try:
        values = yaml.safe_load(path.read_bytes())
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise InputError(f"{path} is damaged ({error}); delete it to resume without it") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} is damaged; delete it to resume without it")
    return values
