"""`adjointdpm audit`."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from .._types import InputError, Range
from ..metrics import HiddenStates
from ..metrics.image_classifier import Classifier
from ..samplers.base import Sampler
from ..tasks import AuditResult, AuditSettings, HardenSettings, pixels
from ..tasks.audit import audit as run_audit
from ..tasks.evaluation import labels_of
from ..tasks.harden import harden as run_harden
from .flags import ForBundled, Given, PromptTexts
from .options import ModelOptions, OutputOptions, agreed, announce, judge_of, saved
from .parse_sampler import check_memory, classifier_of

__all__ = ["Audit", "AuditOptions", "HardenOptions"]

_QUIET = ("output_dir", "report_to", "checkpointing_steps", "train_batch_size", "max_train_steps")


@dataclass(frozen=True)
class AuditOptions:
    """What is audited, and in which ball.

    Args:
        prompt: Prompt such as "a cat on a blue background". May be repeated, or be a file of prompts.
        label: Label that the classifier should give the images of a prompt. May be repeated, once per prompt.
        classifier: Classifier to audit: bundled, a folder, or a name on a hub.
        judge: Classifier that says what images show; none for no judge.
        transfer: Further classifier on which the images found are tried. May be repeated.
        keep_features: Classifier whose features are to stay near the original's; or pixels, or none.
        target: Label to reach; any other label counts if it is not given.
    """

    prompt: Annotated[tuple[str, ...], PromptTexts()]
    label: tuple[str, ...] = ()
    classifier: Annotated[str | None, ForBundled("emoji/resnet", None)] = None
    judge: Annotated[str | None, ForBundled("emoji/judge", "none")] = None
    transfer: tuple[str, ...] = ()
    keep_features: str = "pixels"
    target: str | None = None


@dataclass(frozen=True)
class HardenOptions:
    """Whether the classifier is fine-tuned on what was found, and how.

    Args:
        harden: Fine-tune the classifier after the audit.
        harden_rounds: Number of rounds of fine-tuning. Each but the first attacks anew.
        harden_steps: Number of steps of each fine-tuning.
        harden_clean: Number of images for each prompt to train on that are not attacked.
        harden_radius: Radius of the attacks used for hardening; --radius by default.
        harden_confidence: Confidence of the attacks used for hardening; --confidence by default.
        harden_variants: Number of steps to each image's worst variant; 0 for no variants.
        harden_other: Prompt that is not audited and not to be forgotten. May be repeated, or be a file of prompts.
    """

    harden: bool = False
    harden_rounds: Annotated[int, Range(1)] = HardenSettings.rounds
    harden_steps: Annotated[int, Range(1)] = HardenSettings.steps
    harden_clean: Annotated[int, Range(0)] = HardenSettings.clean
    harden_radius: Annotated[float | None, Range(0, open_low=True)] = None
    harden_confidence: Annotated[float | None, Range(0)] = None
    harden_variants: Annotated[int, Range(0)] = HardenSettings.variant_steps
    harden_other: Annotated[tuple[str, ...], PromptTexts()] = ()

    def settings(self, attack: AuditSettings) -> HardenSettings:
        """The settings of the fine-tuning, whose attacks are the audit's but for what differs."""
        radius = attack.ball.radius if self.harden_radius is None else self.harden_radius
        confidence = attack.confidence if self.harden_confidence is None else self.harden_confidence
        return HardenSettings(
            self.harden_rounds,
            self.harden_steps,
            clean=self.harden_clean,
            seed=attack.seed,
            variant_steps=self.harden_variants,
            attack=replace(attack, ball=replace(attack.ball, radius=radius), confidence=confidence),
        )


@dataclass(frozen=True)
class Audit:
    """The flags of `adjointdpm audit`."""

    task: AuditOptions
    model: ModelOptions
    hardening: HardenOptions
    attack: AuditSettings = AuditSettings()
    output: OutputOptions = OutputOptions(Path("outputs/audit"))

    def run(self, given: Given) -> None:
        """Audit a classifier, and harden it if that is wanted."""
        task = self.task
        if task.classifier is None:
            raise InputError(
                "audit needs a --classifier with a model of your own: the bundled ones know its images alone"
            )
        hardens = [name for name in given.values if name.startswith("harden")]
        if not self.hardening.harden:
            given.refuse_unused(hardens, "without --harden")
        if task.keep_features == "none":
            given.refuse_unused(("keep_weight",), "with --keep_features none")
        hardening = self.hardening.settings(self.attack)
        folder, report = self.output.folder(), self.output.reporter()
        sampler = self.model.sampler()
        check_memory(sampler, len(task.prompt) * self.attack.num_starts, self.attack.train_batch_size)
        place, shape = sampler.noise(1).device, sampler.image_shape
        audited = classifier_of(task.classifier, place, shape)
        also = self.hardening.harden_other
        labels = labels_of(audited, also, None)
        others = {p: audited.labels[i] for p, i in zip(also, labels, strict=True)}
        shared: dict[str, Any] = {
            "features": self._features(sampler),
            "judge": judge_of(task.judge, sampler),
            "resume": self.output.resume,
        }
        transfer = {name: classifier_of(name, place, shape) for name in task.transfer}
        quiet = (*_QUIET, *hardens)
        found = run_audit(
            sampler,
            audited,
            task.prompt,
            task.label or None,
            output=folder,
            settings=self.attack,
            target=task.target,
            transfer=transfer,
            config=agreed(given, quiet),
            repeat=saved(given, folder, quiet),
            report=report,
            **shared,
        )
        announce(f"misclassified: {found.success}")
        announce(f"misclassified, label preserved: {'no judge' if found.kept is None else found.kept}")
        if self.hardening.harden:
            _harden(found, sampler, audited, self.attack, hardening, others=others, **shared)
        announce(f"page: {(folder / 'index.html').resolve()}")

    def _features(self, sampler: Sampler) -> Any:
        """What is to stay near the original image's; None for nothing."""
        name = self.task.keep_features
        if name in ("none", "pixels"):
            return pixels if name == "pixels" else None
        kept = classifier_of(name, sampler.noise(1).device, sampler.image_shape)
        return HiddenStates(kept.model, kept.normalized, None)


def _harden(
    found: AuditResult,
    sampler: Sampler,
    audited: Classifier,
    settings: AuditSettings,
    hardening: HardenSettings,
    **more: Any,
) -> None:
    """Fine-tune the classifier, and announce what changed."""
    harder = run_harden(found, sampler, audited, settings, hardening, **more)
    announce(f"after hardening, on fresh noise: {harder.after} misclassified, before: {harder.before}")
    if harder.kept_before:
        announce(f"misclassified, label preserved: {harder.kept_after}, before: {harder.kept_before}")
    announce(f"clean images read right: {harder.clean_after}, before: {harder.clean_before}")
    if harder.others_before:
        announce(f"those of the others: {harder.others_after}, before: {harder.others_before}")
