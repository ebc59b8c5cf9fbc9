"""The commands tune and invert: their flags, and the values those stand for."""

from pathlib import Path
from typing import Annotated

import typer

from .._types import InputError
from ..samplers.flow_sampler import FlowSampler
from ..tasks.tune.trainable_weights import Lora, Subset
from ..tasks.tune.tune import TuneSettings
from ..tasks.tune.tune import tune as run_tune
from .common import (
    RESULTS,
    Classifiers,
    Clip,
    Features,
    HeldOut,
    Judge,
    Layers,
    Metrics,
    Noises,
    Prompts,
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
    refuse_unused,
    reporter,
    sampler_from,
)
from .parse_metric import image_option, metric_of
from .parse_sampler import check_memory

__all__ = ["tune"]


def tune(
    ctx: typer.Context,
    metric: Metrics,
    prompt: Prompts,
    validation_prompt: HeldOut,
    measure: Annotated[
        list[str] | None,
        typer.Option("--measure", help="A metric to report; the one that is trained by default."),
    ] = None,
    reference: Annotated[
        str | None, typer.Option("--instance_image", help="Also try the denoising loss on this picture.")
    ] = None,
    instance_prompt: Annotated[
        str, typer.Option("--instance_prompt", help="What it is called there.")
    ] = "",
    rank: Annotated[int, number("--rank", 1, 1024, about="Rank of the LoRA.")] = 4,
    lora_alpha: Annotated[
        float | None,
        number("--lora_alpha", 0, open_low=True, about="Scale of the LoRA; its rank by default."),
    ] = None,
    lora_layers: Annotated[
        list[str] | None, typer.Option("--lora_layers", help="Ends of layers' names; may be repeated.")
    ] = None,
    weights: Annotated[
        list[str] | None, typer.Option("--weights", help="Patterns of weights to train instead of a LoRA.")
    ] = None,
    judge: Judge = None,
    label: Annotated[
        list[str] | None, typer.Option("--label", help="The judge's label of each validation prompt.")
    ] = None,
    features: Features = None,
    layer: Layers = None,
    clip_model: Clip = "openai/clip-vit-base-patch32",
    classifier: Classifiers = None,
    num_validation_images: Noises = 2,
    max_grad_norm: Annotated[
        float,
        number("--max_grad_norm", 0, 10**9, open_low=True, about="Longer gradients are scaled down to it."),
    ] = 1.0,
    validation_steps: Annotated[
        int,
        number("--validation_steps", 1, about="Steps between validations, which choose the best iterate."),
    ] = 10,
    config: Config = None,
    output_dir: OutputDir = Path("outputs/tune"),
    pretrained_model_name_or_path: Model = "emoji",
    seed: Seed = 0,
    max_train_steps: MaxTrainSteps = 100,
    learning_rate: LearningRate = 1e-3,
    num_inference_steps: NumInferenceSteps = 25,
    guidance_scale: GuidanceScale = None,
    solver: SolverFlag = "dpm++",
    adjoint: AdjointFlag = "checkpointed",
    mixed_precision: MixedPrecision = "no",
    device: Device = "auto",
    train_batch_size: Batch = 4,
    checkpointing_steps: CheckpointingSteps = 10,
    resume: Resume = False,
    overwrite: Overwrite = False,
    report_to: ReportTo = "none",
) -> None:
    """Train weights (a LoRA) towards a metric of the finished picture."""
    if weights:
        refuse_unused(
            ctx, ("rank", "lora_alpha", "lora_layers"), "where --weights are trained instead of a LoRA"
        )
    if reference is None:
        refuse_unused(ctx, ("instance_prompt",), "without --instance_image")
    if judge == "none":
        refuse_unused(ctx, ("label",), "without a judge")
    folder = free_folder(output_dir, *RESULTS, resume=resume, overwrite=overwrite)
    report = reporter(report_to, folder)
    sampler = sampler_from(ctx)
    if reference is not None and not isinstance(sampler, FlowSampler):
        raise InputError(
            "--instance_image needs our own steps, not the pipeline's; choose another --solver"
        )
    check_memory(sampler, len(validation_prompt) * num_validation_images, train_batch_size)
    networks = networks_of(ctx, sampler)
    trained = metric_of(metric, networks)
    measures = {text: metric_of(text, networks) for text in measure or ()} or {" + ".join(metric): trained}
    check_networks(ctx, networks)
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
        measures=measures,
        picture=None if reference is None else image_option(reference),
        picture_prompt=instance_prompt,
        judge=judge_of(judge, sampler),
        labels=label or None,
        resume=resume,
        config=agreed(ctx),
        repeat=saved(ctx, folder),
        report=report,
    )
    for way, each in found.ways.items():
        judged = "" if each.judged is None else f"; concept seen: {each.judged}"
        announce(f"{way}: {', '.join(f'{k} {v:.4f}' for k, v in each.distances.items())}{judged}")
    announce(f"weights: {found.artefact.resolve()}", f"page: {(folder / 'index.html').resolve()}")
