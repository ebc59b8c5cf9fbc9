"""The command guide: its flags, and the values those stand for."""

from pathlib import Path
from typing import Annotated

import typer

from .._types import InputError
from ..samplers.flow_sampler import FlowSampler
from ..tasks.guide.guide import GuideSettings
from ..tasks.guide.guide import guide as run_guide
from ..tasks.guide.look_ahead import LookAhead
from .common import (
    RESULTS,
    Classifiers,
    Clip,
    Features,
    Judge,
    Layers,
    Metrics,
    Noises,
    agreed,
    check_networks,
    judge_of,
    networks_of,
    saved,
)
from .options import (
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
    Overwrite,
    ReportTo,
    Resume,
    Seed,
    SolverFlag,
    announce,
    free_folder,
    number,
    prompts_option,
    refuse_unused,
    reporter,
    sampler_from,
)
from .parse_metric import metric_of
from .parse_sampler import check_memory

__all__ = ["guide"]


def guide(
    ctx: typer.Context,
    metric: Metrics,
    prompt: Annotated[list[str], prompts_option("--prompt", about="Prompts of the images.")],
    look_ahead: Annotated[
        int, number("--look_ahead", 1, 10_000, about="Steps that each step of the trajectory looks ahead.")
    ] = 4,
    strength: Annotated[
        float,
        number("--strength", 0, open_low=True, about="Length of a move, as a fraction of the noise's."),
    ] = 0.2,
    judge: Judge = None,
    label: Annotated[
        list[str] | None, typer.Option("--label", help="The judge's label of each prompt.")
    ] = None,
    features: Features = None,
    layer: Layers = None,
    clip_model: Clip = "openai/clip-vit-base-patch32",
    classifier: Classifiers = None,
    num_validation_images: Noises = 2,
    config: Config = None,
    output_dir: OutputDir = Path("outputs/guide"),
    pretrained_model_name_or_path: Model = "emoji",
    seed: Seed = 0,
    max_train_steps: MaxTrainSteps = 10,
    learning_rate: LearningRate = 0.1,
    num_inference_steps: NumInferenceSteps = 25,
    guidance_scale: GuidanceScale = None,
    solver: SolverFlag = "dpm++",
    adjoint: AdjointFlag = "checkpointed",
    mixed_precision: MixedPrecision = "no",
    device: Device = "auto",
    train_batch_size: Batch = 8,
    checkpointing_steps: CheckpointingSteps = 5,
    resume: Resume = False,
    overwrite: Overwrite = False,
    report_to: ReportTo = "none",
) -> None:
    """Guide pictures to a metric, without training, beside one-step guidance."""
    if solver == "pipeline":
        raise InputError("guide needs our own steps, not the pipeline's scheduler; choose another --solver")
    if judge == "none":
        refuse_unused(ctx, ("label",), "without a judge")
    folder = free_folder(output_dir, *RESULTS, resume=resume, overwrite=overwrite)
    report = reporter(report_to, folder)
    sampler = sampler_from(ctx)
    assert isinstance(sampler, FlowSampler)  # what every other --solver makes
    check_memory(sampler, len(prompt) * num_validation_images, train_batch_size)
    networks = networks_of(ctx, sampler)
    goal = metric_of(metric, networks)
    check_networks(ctx, networks)
    found = run_guide(
        sampler,
        goal,
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
        judge=judge_of(judge, sampler),
        labels=label or None,
        resume=resume,
        config=agreed(ctx),
        repeat=saved(ctx, folder),
        report=report,
    )
    for name, way in found.ways.items():
        judged = "" if way.judged is None else f"; concept seen: {way.judged}"
        announce(f"{name}: {float(way.values.mean()):.4f} in {way.calls} calls{judged}")
    announce(f"noise: {found.artefact.resolve()}", f"page: {(folder / 'index.html').resolve()}")
