"""The command audit: its flags, and the values those stand for."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from .._types import InputError
from ..metrics import HiddenStates
from ..tasks import AuditSettings, Ball, HardenSettings, pixels
from ..tasks.audit import audit as run_audit
from ..tasks.evaluation import labels_of
from ..tasks.harden import harden as run_harden
from .common import RESULTS, Judge, agreed, judge_of, saved
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
    prompts_option,
    refuse_unused,
    reporter,
    sampler_from,
)
from .parse_sampler import check_memory, classifier_of

__all__ = ["audit"]


def audit(
    ctx: typer.Context,
    prompt: Annotated[list[str], prompts_option("--prompt", about='Such as "a cat on a blue background".')],
    label: Annotated[
        list[str] | None, typer.Option("--label", help="The classifier's label of each prompt.")
    ] = None,
    classifier: Annotated[
        str | None,
        for_bundled(
            "--classifier", "emoji/resnet", None, about="The classifier to audit: bundled, folder or name."
        ),
    ] = None,
    judge: Judge = None,
    transfer: Annotated[
        list[str] | None, typer.Option("--transfer", help="Another classifier to try; may be repeated.")
    ] = None,
    keep_features: Annotated[
        str,
        typer.Option("--keep_features", help="Classifier whose features are to stay; pixels; none."),
    ] = "pixels",
    keep_weight: Annotated[
        float, number("--keep_weight", 0, about="Weight of staying near the original image.")
    ] = 1.0,
    target: Annotated[
        str | None, typer.Option("--target", help="Target label; any other label if omitted.")
    ] = None,
    radius: Annotated[
        float,
        number(
            "--radius",
            0,
            open_low=True,
            about="Radius of the perturbation, as a fraction of the noise's norm.",
        ),
    ] = 0.1,
    radii: Annotated[
        list[float] | None,
        number("--radii", 0, open_low=True, about="A further radius, for a curve; may be repeated."),
    ] = None,
    norm: Annotated[str, choice("--norm", ["l2", "linf"], about="l2 or linf.")] = "l2",
    shell: Annotated[bool, typer.Option("--shell", help="Keep the noise's norm.")] = False,
    starts: Annotated[int, number("--num_starts", 1, about="Images for each prompt.")] = 1,
    tries: Annotated[int, number("--tries", 1, about="Noises to try for each of them.")] = 4,
    confidence: Annotated[
        float, number("--confidence", 0, about="Margin of logits at which only likeness counts.")
    ] = 1.0,
    momentum: Annotated[
        float, number("--momentum", 0, 1, about="Momentum of the steps, from 0 to 1.")
    ] = 0.0,
    controls: Annotated[
        bool, typer.Option("--controls/--no_controls", help="Random noise and SPSA in the same ball.")
    ] = True,
    harden: Annotated[bool, typer.Option("--harden", help="Then fine-tune the classifier.")] = False,
    harden_rounds: Annotated[
        int, number("--harden_rounds", 1, about="Rounds of fine-tuning; each but the first attacks anew.")
    ] = 1,
    harden_steps: Annotated[int, number("--harden_steps", 1, about="Steps of each fine-tuning.")] = 500,
    harden_clean: Annotated[
        int,
        number(
            "--harden_clean", 0, about="Images for each prompt that are not attacked, to train on, too."
        ),
    ] = 16,
    harden_radius: Annotated[
        float | None,
        number(
            "--harden_radius",
            0,
            open_low=True,
            about="Radius of the attacks used for hardening (default: --radius).",
        ),
    ] = None,
    harden_confidence: Annotated[
        float | None, number("--harden_confidence", 0, about="Their confidence (default: --confidence).")
    ] = None,
    harden_variants: Annotated[
        int, number("--harden_variants", 0, about="Steps to each image's worst variant; 0 for none.")
    ] = 3,
    harden_other: Annotated[
        list[str] | None,
        prompts_option("--harden_other", about="Prompts that are not audited and not to be forgotten."),
    ] = None,
    config: Config = None,
    output_dir: OutputDir = Path("outputs/audit"),
    pretrained_model_name_or_path: Model = "emoji",
    seed: Seed = 0,
    max_train_steps: MaxTrainSteps = 20,
    learning_rate: LearningRate = 0.25,
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
    """Look for initial noise whose images a classifier gets wrong."""
    if classifier is None:
        raise InputError(
            "audit needs a --classifier with a model of your own: the bundled ones know its images alone"
        )
    if not harden:
        refuse_unused(ctx, [name for name in ctx.params if name.startswith("harden_")], "without --harden")
    if keep_features == "none":
        refuse_unused(ctx, ("keep_weight",), "with --keep_features none")
    settings = AuditSettings(
        ball=Ball(radius, norm, shell),
        radii=tuple(radii or ()),
        starts=starts,
        tries=tries,
        steps=max_train_steps,
        learning_rate=learning_rate,
        momentum=momentum,
        confidence=confidence,
        keep_weight=keep_weight,
        controls=controls,
        batch_size=train_batch_size,
        seed=seed,
        checkpointing_steps=checkpointing_steps,
    )
    again = replace(
        settings,
        ball=replace(settings.ball, radius=radius if harden_radius is None else harden_radius),
        confidence=confidence if harden_confidence is None else harden_confidence,
    )
    hardening = HardenSettings(
        harden_rounds,
        harden_steps,
        clean=harden_clean,
        seed=seed,
        variant_steps=harden_variants,
        attack=again,
    )
    folder = free_folder(output_dir, *RESULTS, resume=resume, overwrite=overwrite)
    report = reporter(report_to, folder)
    sampler = sampler_from(ctx)
    check_memory(sampler, len(prompt) * starts, train_batch_size)
    place, shape = sampler.noise(1).device, sampler.image_shape
    audited = classifier_of(classifier, place, shape)
    also = harden_other or []
    others = {p: audited.labels[i] for p, i in zip(also, labels_of(audited, also, None), strict=True)}
    features = None
    if keep_features != "none":
        kept = None if keep_features == "pixels" else classifier_of(keep_features, place, shape)
        features = pixels if kept is None else HiddenStates(kept.model, kept.normalized, None)
    quiet = ["output_dir", "report_to", "checkpointing_steps", "train_batch_size", "max_train_steps"]
    quiet += [name for name in ctx.params if name.startswith("harden")]
    evaluator = judge_of(judge, sampler)
    others_tried = {name: classifier_of(name, place, shape) for name in transfer or ()}
    repeat = saved(ctx, folder, quiet)
    found = run_audit(
        sampler,
        audited,
        prompt,
        label or None,
        output=folder,
        settings=settings,
        target=target,
        judge=evaluator,
        transfer=others_tried,
        features=features,
        resume=resume,
        config=agreed(ctx, quiet),
        repeat=repeat,
        report=report,
    )
    announce(f"misread: {found.success}")
    announce(f"misread and still shown: {'no judge' if found.kept is None else found.kept}")
    if harden:
        harder = run_harden(
            found,
            sampler,
            audited,
            settings,
            hardening,
            judge=evaluator,
            features=features,
            others=others,
            resume=resume,
        )
        announce(f"after hardening, on fresh noise: {harder.after} misread, before: {harder.before}")
        if harder.kept_before:
            announce(f"misread and still shown: {harder.kept_after}, before: {harder.kept_before}")
        announce(f"clean pictures read right: {harder.clean_after}, before: {harder.clean_before}")
        if harder.others_before:
            announce(f"those of the others: {harder.others_after}, before: {harder.others_before}")
    announce(f"page: {(folder / 'index.html').resolve()}")
