"""The command audit: its flags, and the values those stand for."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from .commands import agreed, saved
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
from .metrics import HiddenStates
from .pictures import output_folder
from .tasks import AuditSettings, Ball, HardenSettings, pixels
from .tasks import audit as run_audit
from .tasks import harden as run_harden
from .tasks.settings import labels_of
from .zoo import load_classifier

__all__ = ["audit"]


def audit(
    ctx: typer.Context,
    prompt: Annotated[
        list[str], typer.Option("--prompt", help='Such as "a cat on a blue background"; may be repeated.')
    ],
    label: Annotated[
        list[str] | None, typer.Option("--label", help="The classifier's label of each prompt.")
    ] = None,
    classifier: Annotated[
        str, typer.Option("--classifier", help="To be audited: bundled, folder or name.")
    ] = "emoji/resnet",
    judge: Annotated[
        str, typer.Option("--judge", help="Says whether a picture still shows its thing; none for none.")
    ] = "emoji/judge",
    transfer: Annotated[list[str] | None, typer.Option("--transfer", help="Other classifiers.")] = None,
    keep_features: Annotated[
        str, typer.Option("--keep_features", help="Classifier whose features are kept; pixels; none.")
    ] = "pixels",
    keep_weight: Annotated[float, typer.Option("--keep_weight")] = 1.0,
    target: Annotated[str | None, typer.Option("--target", help="What all is to be taken for.")] = None,
    radius: Annotated[float, typer.Option("--radius", help="Of the ball.")] = 0.1,
    radii: Annotated[list[float] | None, typer.Option("--radii", help="More, for a curve.")] = None,
    norm: Annotated[str, typer.Option("--norm", help="l2 or linf.")] = "l2",
    shell: Annotated[bool, typer.Option("--shell", help="Keep the noise's norm.")] = False,
    starts: Annotated[int, typer.Option("--num_starts", help="Pictures a prompt.")] = 1,
    tries: Annotated[int, typer.Option("--tries", help="Noises tried for each of them.")] = 4,
    confidence: Annotated[float, typer.Option("--confidence", help="Logits to be wrong by.")] = 1.0,
    momentum: Annotated[float, typer.Option("--momentum")] = 0.0,
    controls: Annotated[bool, typer.Option("--controls/--no_controls", help="Random noise, SPSA.")] = True,
    harden: Annotated[bool, typer.Option("--harden", help="Then fine-tune the classifier.")] = False,
    harden_rounds: Annotated[
        int, typer.Option("--harden_rounds", help="Of fine-tuning; each but the first attacks anew.")
    ] = 1,
    harden_steps: Annotated[int, typer.Option("--harden_steps", help="Of each fine-tuning.")] = 500,
    harden_clean: Annotated[
        int, typer.Option("--harden_clean", help="Pictures a prompt, not attacked, to train on beside.")
    ] = 16,
    harden_radius: Annotated[
        float | None, typer.Option("--harden_radius", help="Of these attacks; --radius by default.")
    ] = None,
    harden_confidence: Annotated[
        float | None, typer.Option("--harden_confidence", help="Theirs; --confidence by default.")
    ] = None,
    harden_variants: Annotated[
        int, typer.Option("--harden_variants", help="Steps to each picture's worst variant; 0 for none.")
    ] = 3,
    harden_other: Annotated[
        list[str] | None, typer.Option("--harden_other", help="Prompts not audited, not to be forgotten.")
    ] = None,
    config: Config = None,
    output_dir: OutputDir = Path("outputs/audit"),
    pretrained_model_name_or_path: Model = "emoji",
    seed: Seed = 0,
    max_train_steps: MaxTrainSteps = 20,
    learning_rate: LearningRate = 0.25,
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
    """Look for initial noise whose pictures a classifier misreads."""
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
    folder = output_folder(output_dir)
    report = reporter(report_to, folder)
    audited = load_classifier(classifier, device=device)
    also = harden_other or []
    others = {p: audited.labels[i] for p, i in zip(also, labels_of(audited, also, None), strict=True)}
    features = None
    if keep_features != "none":
        kept = None if keep_features == "pixels" else load_classifier(keep_features, device=device)
        features = pixels if kept is None else HiddenStates(kept.model, kept.normalised, None)
    sampler = sampler_from(ctx)
    quiet = ["output_dir", "report_to", "checkpointing_steps", "train_batch_size"]
    quiet += [name for name in ctx.params if name.startswith("harden")]
    repeat = saved(ctx, folder)
    witness = None if judge == "none" else load_classifier(judge, device=device)
    found = run_audit(
        sampler,
        audited,
        prompt,
        label or None,
        output=folder,
        settings=settings,
        target=target,
        judge=witness,
        transfer={name: load_classifier(name, device=device) for name in transfer or ()},
        features=features,
        resume=resume,
        config=agreed(ctx, quiet),
        repeat=repeat,
        report=report,
    )
    print(f"misread: {found.success}")
    print(f"misread and still shown: {'no judge' if found.kept is None else found.kept}")
    if harden:
        harder = run_harden(
            found,
            sampler,
            audited,
            settings,
            hardening,
            judge=witness,
            features=features,
            others=others,
            resume=resume,
        )
        print(f"after hardening, on fresh noise: {harder.after} misread, before: {harder.before}")
        if harder.kept_before:
            print(f"misread and still shown: {harder.kept_after}, before: {harder.kept_before}")
        print(f"clean pictures read right: {harder.clean_after}, before: {harder.clean_before}")
        if harder.others_before:
            print(f"those of the others: {harder.others_after}, before: {harder.others_before}")
    print(f"page: {(folder / 'index.html').resolve()}")
