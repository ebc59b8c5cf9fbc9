"""The commands tune and invert: their flags, and the values those stand for."""

from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any

import typer

from ._types import InputError
from .flags import (
    AdjointFlag,
    Batch,
    CheckpointingSteps,
    Config,
    Device,
    GuidanceScale,
    LearningRate,
    MaxTrainSteps,
    MixedPrecision,
    Model,
    NumInferenceSteps,
    OutputDir,
    ReportTo,
    Resume,
    Seed,
    SolverFlag,
    reporter,
    resolved,
    sampler_from,
    save_config,
)
from .metrics import Pixels, effect
from .pictures import output_folder
from .specs import Networks, metric_of, picture_file
from .tasks.inversion import EffectGoal, PromptGoal, PromptRows, TokenVectors
from .tasks.invert import InvertSettings
from .tasks.invert import invert as run_invert
from .tasks.processes import Processes
from .tasks.tune import TuneSettings
from .tasks.tune import tune as run_tune
from .tasks.tuning import Lora, Subset
from .zoo import load_classifier

__all__ = ["agreed", "invert", "saved", "tune"]

# What does not change a result, so that a checkpoint need not agree on it.
_QUIET = ("output_dir", "report_to", "checkpointing_steps", "judge")

Prompts = Annotated[list[str], typer.Option("--prompt", help="Trained on; may be repeated.")]
HeldOut = Annotated[list[str], typer.Option("--validation_prompt", help="Reported on; may be repeated.")]
Features = Annotated[
    str, typer.Option("--features", help="Classifier whose features style and content are of.")
]
Layers = Annotated[list[int] | None, typer.Option("--layer", help="Which hidden states; may be repeated.")]
Clip = Annotated[str, typer.Option("--clip_model", help="CLIP model for clip-text and clip-image.")]
Classifiers = Annotated[str, typer.Option("--classifier", help="For the metrics label and margin.")]
Noises = Annotated[int, typer.Option("--num_validation_images", min=1, help="Noises a prompt.")]


def tune(
    ctx: typer.Context,
    metric: Annotated[str, typer.Option("--metric", help='Such as "style:picture.png + 0.3*content".')],
    prompt: Prompts,
    validation_prompt: HeldOut,
    measure: Annotated[
        list[str] | None,
        typer.Option("--measure", help="Metrics to report; the one that is trained by default."),
    ] = None,
    reference: Annotated[
        str | None, typer.Option("--instance_image", help="Also try the denoising loss on this picture.")
    ] = None,
    instance_prompt: Annotated[
        str, typer.Option("--instance_prompt", help="What it is called there.")
    ] = "",
    rank: Annotated[int, typer.Option("--rank", min=1, help="Of the LoRA.")] = 4,
    lora_alpha: Annotated[float | None, typer.Option("--lora_alpha", help="The rank by default.")] = None,
    lora_layers: Annotated[
        list[str] | None, typer.Option("--lora_layers", help="Ends of layers' names; may be repeated.")
    ] = None,
    weights: Annotated[
        list[str] | None, typer.Option("--weights", help="Patterns of weights to train instead of a LoRA.")
    ] = None,
    judge: Annotated[
        str, typer.Option("--judge", help="Names what pictures show; none for none.")
    ] = "emoji/judge",
    label: Annotated[list[str] | None, typer.Option("--label", help="Of each validation prompt.")] = None,
    features: Features = "emoji/resnet",
    layer: Layers = None,
    clip_model: Clip = "openai/clip-vit-base-patch32",
    classifier: Classifiers = "emoji/resnet",
    num_validation_images: Noises = 2,
    max_grad_norm: Annotated[float, typer.Option("--max_grad_norm")] = 1.0,
    validation_steps: Annotated[int, typer.Option("--validation_steps", min=1)] = 10,
    config: Config = None,
    output_dir: OutputDir = Path("outputs/tune"),
    pretrained_model_name_or_path: Model = "emoji",
    seed: Seed = 0,
    max_train_steps: MaxTrainSteps = 100,
    learning_rate: LearningRate = 1e-3,
    num_inference_steps: NumInferenceSteps = 25,
    guidance_scale: GuidanceScale = 4.0,
    solver: SolverFlag = "dpm++",
    adjoint: AdjointFlag = "checkpointed",
    mixed_precision: MixedPrecision = "no",
    device: Device = "cpu",
    train_batch_size: Batch = 4,
    checkpointing_steps: CheckpointingSteps = 10,
    resume: Resume = False,
    report_to: ReportTo = "none",
) -> None:
    """Train weights (a LoRA) towards a metric of the finished picture."""
    if weights and lora_layers:
        raise InputError("give weights or lora_layers, not both")
    folder = output_folder(output_dir)
    sampler = sampler_from(ctx)
    networks = Networks(sampler, features, tuple(layer or (0, 1, 2)), classifier, clip_model, device)
    trained = metric_of(metric, networks)
    lora = Lora(rank, lora_alpha, tuple(lora_layers) if lora_layers else Lora().modules)
    found = run_tune(
        sampler,
        trained,
        prompt,
        validation_prompt,
        output=folder,
        weights=Subset(tuple(weights)) if weights else lora,
        settings=TuneSettings(
            steps=max_train_steps,
            learning_rate=learning_rate,
            batch_size=train_batch_size,
            max_grad_norm=max_grad_norm,
            validation_steps=validation_steps,
            noises=num_validation_images,
            seed=seed,
            checkpointing_steps=checkpointing_steps,
        ),
        measures={text: metric_of(text, networks) for text in measure or ()} or {metric: trained},
        picture=None if reference is None else picture_file(reference),
        picture_prompt=instance_prompt,
        judge=None if judge == "none" else load_classifier(judge, device=device),
        labels=label or None,
        resume=resume,
        config=agreed(ctx),
        repeat=saved(ctx, folder),
        report=reporter(report_to, folder),
    )
    for way, each in found.ways.items():
        judged = "" if each.judged is None else f"; concept seen: {each.judged}"
        print(f"{way}: {', '.join(f'{k} {v:.4f}' for k, v in each.distances.items())}{judged}")
    print(f"weights: {found.artefact.resolve()}")
    print(f"page: {(folder / 'index.html').resolve()}")


def invert(
    ctx: typer.Context,
    prompt: Prompts,
    validation_prompt: HeldOut,
    target_word: Annotated[
        str | None, typer.Option("--target_word", help="Learn what this word does to prompts.")
    ] = None,
    target_effect: Annotated[
        str | None,
        typer.Option("--target_effect", help="Learn an effect: sepia, night, kornia:... and so on."),
    ] = None,
    learn: Annotated[
        str, typer.Option("--learn", help="token (portable) or rows of the encoded prompt.")
    ] = "token",
    placeholder_token: Annotated[
        str, typer.Option("--placeholder_token", help="In the prompts.")
    ] = "<effect>",
    initializer_token: Annotated[str, typer.Option("--initializer_token", help="A known word.")] = "a",
    num_vectors: Annotated[int, typer.Option("--num_vectors", min=1, help="Of the token.")] = 1,
    distance: Annotated[
        str, typer.Option("--metric", help='Such as "pixels" or "pixels + 0.1*content".')
    ] = "pixels",
    judge: Annotated[
        str, typer.Option("--judge", help="Says which effect pictures show; none for none.")
    ] = "emoji/judge/style",
    label: Annotated[str | None, typer.Option("--label", help="What the judge should say.")] = None,
    features: Features = "emoji/resnet",
    layer: Layers = None,
    num_validation_images: Noises = 2,
    config: Config = None,
    output_dir: OutputDir = Path("outputs/invert"),
    pretrained_model_name_or_path: Model = "emoji",
    seed: Seed = 0,
    max_train_steps: MaxTrainSteps = 100,
    learning_rate: LearningRate = 0.02,
    num_inference_steps: NumInferenceSteps = 25,
    guidance_scale: GuidanceScale = 4.0,
    solver: SolverFlag = "dpm++",
    adjoint: AdjointFlag = "checkpointed",
    mixed_precision: MixedPrecision = "no",
    device: Device = "cpu",
    train_batch_size: Batch = 8,
    checkpointing_steps: CheckpointingSteps = 10,
    resume: Resume = False,
    report_to: ReportTo = "none",
) -> None:
    """Learn a visual effect as a word of prompts."""
    if (target_word is None) == (target_effect is None):
        raise InputError("give target_word or target_effect: what the new word is to do")
    if learn not in ("token", "rows"):
        raise InputError(f"learn is token or rows, but is {learn!r}")
    folder = output_folder(output_dir)
    goal = PromptGoal(target_word) if target_word else EffectGoal(effect(target_effect or ""))
    sampler = sampler_from(ctx)
    networks = Networks(sampler, features, tuple(layer or (0, 1, 2)), device=device)
    if learn == "token":
        learned: Any = TokenVectors(sampler, placeholder_token, initializer_token, num_vectors)
    else:
        learned = PromptRows(sampler, placeholder_token, initializer_token)
    found = run_invert(
        sampler,
        learned,
        goal,
        prompt,
        validation_prompt,
        token=placeholder_token,
        output=folder,
        settings=InvertSettings(
            steps=max_train_steps,
            learning_rate=learning_rate,
            batch_size=train_batch_size,
            noises=num_validation_images,
            seed=seed,
            checkpointing_steps=checkpointing_steps,
        ),
        distance=Pixels() if distance == "pixels" else metric_of(distance, networks),
        judge=None if judge == "none" or label is None else load_classifier(judge, device=device),
        label=label,
        resume=resume,
        config=agreed(ctx),
        repeat=saved(ctx, folder),
        report=reporter(report_to, folder),
    )
    for name, each in found.reports.items():
        judged = "" if each.judged is None else f"; effect seen: {each.judged}"
        print(f"{name}: {each.distance_before:.4f} to {each.distance_after:.4f}{judged}")
    print(f"word: {found.artefact.resolve()}")
    print(f"page: {(folder / 'index.html').resolve()}")


def agreed(ctx: typer.Context, quiet: Collection[str] = _QUIET) -> dict[str, Any]:
    """The flags that a checkpoint must agree on: all but the quiet ones."""
    return {name: value for name, value in resolved(ctx).items() if name not in quiet}


def saved(ctx: typer.Context, folder: Path) -> str:
    """Save the flags once; returns the command that repeats the run."""
    return save_config(ctx, folder) if Processes.here().first else ""
