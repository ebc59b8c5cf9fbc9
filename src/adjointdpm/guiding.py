"""The command guide: its flags, and the values those stand for."""

from pathlib import Path
from typing import Annotated

import typer

from ._types import InputError
from .commands import Classifiers, Clip, Features, Layers, Noises, agreed, saved
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
    sampler_from,
)
from .pictures import output_folder
from .sampler import FlowSampler
from .specs import Networks, metric_of
from .tasks.guide import GuideSettings
from .tasks.guide import guide as run_guide
from .tasks.trajectory import LookAhead
from .zoo import load_classifier

__all__ = ["guide"]


def guide(
    ctx: typer.Context,
    metric: Annotated[str, typer.Option("--metric", help='Such as "background:0.2,0.4,0.9".')],
    prompt: Annotated[list[str], typer.Option("--prompt", help="May be repeated.")],
    look_ahead: Annotated[int, typer.Option("--look_ahead", min=1, help="Steps.")] = 4,
    strength: Annotated[
        float, typer.Option("--strength", help="A move's length, as a share of the noise.")
    ] = 0.2,
    judge: Annotated[
        str, typer.Option("--judge", help="Names what pictures show; none for none.")
    ] = "emoji/judge",
    label: Annotated[list[str] | None, typer.Option("--label", help="Of each prompt.")] = None,
    features: Features = "emoji/resnet",
    layer: Layers = None,
    clip_model: Clip = "openai/clip-vit-base-patch32",
    classifier: Classifiers = "emoji/resnet",
    num_validation_images: Noises = 2,
    config: Config = None,
    output_dir: OutputDir = Path("outputs/guide"),
    pretrained_model_name_or_path: Model = "emoji",
    seed: Seed = 0,
    max_train_steps: MaxTrainSteps = 10,
    learning_rate: LearningRate = 0.1,
    num_inference_steps: NumInferenceSteps = 25,
    guidance_scale: GuidanceScale = 4.0,
    solver: SolverFlag = "dpm++",
    adjoint: AdjointFlag = "checkpointed",
    mixed_precision: MixedPrecision = "no",
    device: Device = "cpu",
    train_batch_size: Batch = 8,
    checkpointing_steps: CheckpointingSteps = 5,
    resume: Resume = False,
    report_to: ReportTo = "none",
) -> None:
    """Guide pictures to a metric, without training, beside one-step guidance."""
    folder = output_folder(output_dir)
    sampler = sampler_from(ctx)
    if not isinstance(sampler, FlowSampler):
        raise InputError("guide needs our own steps, not the pipeline's scheduler; choose another --solver")
    networks = Networks(sampler, features, tuple(layer or (0, 1, 2)), classifier, clip_model, device)
    found = run_guide(
        sampler,
        metric_of(metric, networks),
        prompt,
        output=folder,
        settings=GuideSettings(
            steps=max_train_steps,
            learning_rate=learning_rate,
            ahead=LookAhead(look_ahead, strength),
            noises=num_validation_images,
            batch_size=train_batch_size,
            seed=seed,
            checkpointing_steps=checkpointing_steps,
        ),
        judge=None if judge == "none" else load_classifier(judge, device=device),
        labels=label or None,
        resume=resume,
        config=agreed(ctx),
        repeat=saved(ctx, folder),
        report=reporter(report_to, folder),
    )
    for name, way in found.ways.items():
        judged = "" if way.judged is None else f"; concept seen: {way.judged}"
        print(f"{name}: {float(way.values.mean()):.4f} in {way.calls} calls{judged}")
    print(f"noise: {found.artefact.resolve()}")
    print(f"page: {(folder / 'index.html').resolve()}")
