"""`adjointdpm invert`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from .._types import InputError
from ..metrics import Pixels
from ..tasks.invert.invert import InvertSettings, check_distance
from ..tasks.invert.invert import invert as run_invert
from ..tasks.invert.learned_token import EffectGoal, PromptGoal, PromptRows, TokenVectors
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
    choice,
    for_bundled,
    free_folder,
    number,
    refuse_unused,
    reporter,
    sampler_from,
)
from .parse_metric import guarded_effect, metric_of
from .parse_sampler import check_memory
from .tune import (
    RESULTS,
    Features,
    HeldOut,
    Layers,
    Noises,
    Prompts,
    agreed,
    check_networks,
    judge_of,
    networks_of,
    saved,
)


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
