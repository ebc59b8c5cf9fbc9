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
    Overwrite,
    ReportTo,
    Resume,
    Seed,
    SolverFlag,
    announce,
    choice,
    for_bundled,
    free_folder,
    number,
    prompts_option,
    read_flags,
    refuse_unused,
    reporter,
    resolved,
    sampler_from,
    save_config,
)
from .metrics import Pixels
from .models import check_memory, classifier_of
from .sampler import FlowSampler, Sampler
from .specs import Networks, guarded_effect, metric_of, picture_file
from .tasks.checkpoint import check_config
from .tasks.inversion import EffectGoal, PromptGoal, PromptRows, TokenVectors
from .tasks.invert import InvertSettings, check_distance
from .tasks.invert import invert as run_invert
from .tasks.processes import Processes
from .tasks.tune import TuneSettings
from .tasks.tune import tune as run_tune
from .tasks.tuning import Lora, Subset
from .zoo import Classifier

__all__ = ["RESULTS", "agreed", "check_networks", "invert", "judge_of", "networks_of", "saved", "tune"]

RESULTS = ("result.json", "state/**/*.safetensors")
"""What a task leaves in its folder: its result, and checkpoints on the way there."""

# What does not change a result, so that a checkpoint need not agree on it; the steps are among the task's settings.
_QUIET = ("output_dir", "report_to", "checkpointing_steps", "judge", "max_train_steps")

Prompts = Annotated[list[str], prompts_option("--prompt", about="Prompts to train on.")]
HeldOut = Annotated[list[str], prompts_option("--validation_prompt", about="Prompts to report on.")]
Metrics = Annotated[
    list[str],
    typer.Option("--metric", help='Such as "style:photo.png" or "0.3*content"; several are added up.'),
]
Features = Annotated[
    str | None,
    for_bundled(
        "--features", "emoji/resnet", None, about="Classifier whose features style and content compare."
    ),
]
Layers = Annotated[
    list[int] | None, number("--layer", -1000, 1000, about="Which hidden states; may be repeated.")
]
Clip = Annotated[str, typer.Option("--clip_model", help="CLIP model for clip-text and clip-image.")]
Classifiers = Annotated[
    str | None, for_bundled("--classifier", "emoji/resnet", None, about="For the metrics label and margin.")
]
Judge = Annotated[
    str | None,
    for_bundled(
        "--judge", "emoji/judge", "none", about="Classifier that says what images show; none for none."
    ),
]
Noises = Annotated[int, number("--num_validation_images", 1, about="Noises for each prompt.")]


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
        picture=None if reference is None else picture_file(reference),
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
        str, choice("--learn", ["token", "rows"], about="token (portable) or rows of the encoded prompt.")
    ] = "token",
    placeholder_token: Annotated[
        str, typer.Option("--placeholder_token", help="The new word, as it stands in the prompts.")
    ] = "<effect>",
    initializer_token: Annotated[
        str, typer.Option("--initializer_token", help="A known word, from which the new one starts.")
    ] = "a",
    num_vectors: Annotated[
        int, number("--num_vectors", 1, 512, about="Tokens that the new word stands for.")
    ] = 1,
    distance: Annotated[
        list[str] | None,
        typer.Option("--metric", help='pixels (the default), content, or "pixels + 0.1*content".'),
    ] = None,
    judge: Annotated[
        str | None,
        for_bundled(
            "--judge", "emoji/judge/style", "none", about="Classifier that names the effect; none for none."
        ),
    ] = None,
    label: Annotated[str | None, typer.Option("--label", help="What the judge should say.")] = None,
    features: Features = None,
    layer: Layers = None,
    num_validation_images: Noises = 2,
    config: Config = None,
    output_dir: OutputDir = Path("outputs/invert"),
    pretrained_model_name_or_path: Model = "emoji",
    seed: Seed = 0,
    max_train_steps: MaxTrainSteps = 100,
    learning_rate: LearningRate = 0.02,
    num_inference_steps: NumInferenceSteps = 25,
    guidance_scale: GuidanceScale = None,
    solver: SolverFlag = "dpm++",
    adjoint: AdjointFlag = "checkpointed",
    mixed_precision: MixedPrecision = "no",
    device: Device = "auto",
    train_batch_size: Batch = 8,
    checkpointing_steps: CheckpointingSteps = 10,
    resume: Resume = False,
    overwrite: Overwrite = False,
    report_to: ReportTo = "none",
) -> None:
    """Learn a visual effect as a word of prompts."""
    if (target_word is None) == (target_effect is None):
        raise InputError("give --target_word or --target_effect: what the new word is to do")
    if learn == "rows":
        refuse_unused(ctx, ("num_vectors",), "with --learn rows, which learns one row for the word")
    if label is None and judge != "none":
        refuse_unused(ctx, ("judge",), "without --label, which says what it is to see")
    if label is not None and judge == "none":
        raise InputError("--label says what the judge is to see; give a --judge, too")
    goal = PromptGoal(target_word) if target_word else EffectGoal(guarded_effect(target_effect or ""))
    folder = free_folder(output_dir, *RESULTS, resume=resume, overwrite=overwrite)
    report = reporter(report_to, folder)
    sampler = sampler_from(ctx)
    images = (2 * len(prompt) + len(validation_prompt)) * num_validation_images
    check_memory(sampler, images, train_batch_size)
    networks = networks_of(ctx, sampler)
    measured = metric_of(distance, networks) if distance else Pixels()
    check_networks(ctx, networks)
    try:
        check_distance(measured)
    except InputError as error:
        raise InputError(f"--metric {' + '.join(distance or ())}: {error}") from error
    judged_by = None if label is None else judge_of(judge, sampler)
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
        distance=measured,
        judge=judged_by,
        label=label,
        resume=resume,
        config=agreed(ctx),
        repeat=saved(ctx, folder),
        report=report,
    )
    for name, each in found.reports.items():
        judged = "" if each.judged is None else f"; effect seen: {each.judged}"
        announce(f"{name}: {each.distance_before:.4f} to {each.distance_after:.4f}{judged}")
    announce(f"word: {found.artefact.resolve()}", f"page: {(folder / 'index.html').resolve()}")


def agreed(ctx: typer.Context, quiet: Collection[str] = _QUIET) -> dict[str, Any]:
    """The flags that a checkpoint must agree on: all but the quiet ones."""
    return {name: value for name, value in resolved(ctx).items() if name not in quiet}


def saved(ctx: typer.Context, folder: Path, quiet: Collection[str] = _QUIET) -> str:
    """Save the flags once; returns the command that repeats the run.

    Raises:
        InputError: the run that is to be resumed was made with other flags, which stay as they are in the file.
    """
    path = folder / "config.yaml"
    if ctx.params["resume"] and path.exists():
        before, steps = read_flags(path), ctx.params["max_train_steps"]
        check_config(path, before, agreed(ctx, quiet), free=quiet)
        if isinstance(before.get("max_train_steps"), int) and steps < before["max_train_steps"]:
            raise InputError(
                f"{path} was made with max_train_steps = {before['max_train_steps']}, and --resume goes on to as many "
                f"steps or more, but this run has {steps}"
            )
    return save_config(ctx, folder) if Processes.here().first else ""


def networks_of(ctx: typer.Context, sampler: Sampler) -> Networks:
    """The networks that a command's flags name for its metrics."""
    named = ctx.params
    return Networks(
        sampler,
        named["features"],
        tuple(named["layer"] or (0, 1, 2)),
        named.get("classifier"),
        named.get("clip_model", Networks.clip),
    )


def check_networks(ctx: typer.Context, networks: Networks) -> None:
    """Refuse flags of networks that no metric needs."""
    names = {"features", "layer", "classifier", "clip_model"} & set(ctx.params)
    refuse_unused(ctx, sorted(names - networks.used), "by these metrics")


def judge_of(name: str | None, sampler: Sampler) -> Classifier | None:
    """The judge that a flag names."""
    if name is None or name == "none":
        return None
    return classifier_of(name, sampler.noise(1).device, sampler.image_shape)
