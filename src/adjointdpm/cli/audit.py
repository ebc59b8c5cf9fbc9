"""`adjointdpm audit`."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from .._types import InputError
from ..metrics import HiddenStates
from ..samplers.base import Sampler
from ..tasks import AuditSettings, HardenSettings, pixels
from ..tasks.audit import audit as run_audit
from ..tasks.evaluation import labels_of
from ..tasks.harden import harden as run_harden
from .flags import ForBundled, Given, Group, LabelsOf, PromptTexts
from .image_audit import ImageOptions, run_on_images, starts_of
from .options import ModelOptions, OutputOptions, TaskOptions, announce, check_calls, judge_of
from .parse_sampler import check_memory, classifier_of

__all__ = ["Audit", "AuditOptions", "HardenOptions"]


@dataclass(frozen=True, kw_only=True)
class AuditOptions(TaskOptions):
    """What is audited.

    Args:
        prompt: Prompt of the images. May be repeated, or be a file of prompts: txt, csv or jsonl.
        label: Label that the classifier should give the images of a prompt. May be repeated, once per prompt, or be the
            column label of the file of prompts.
        classifier: Classifier to audit: bundled, a folder, or a name on a hub.
        transfer: Further classifier on which the images found are tried. May be repeated.
        keep_features: Classifier whose features are to stay near the original's; or pixels, or none.
        target: Label to reach; any other label counts if it is not given.
        start: Where the audit starts: at random noise, or at the noise to which the sampler is inverted from labelled
            images (with --images FOLDER, and a --prompt for each of their labels).
    """

    prompt: Annotated[tuple[str, ...], PromptTexts()] = ()
    label: Annotated[tuple[str, ...], LabelsOf("prompt")] = ()
    classifier: Annotated[str | None, ForBundled("emoji/resnet", None)] = None
    transfer: tuple[str, ...] = ()
    keep_features: str = "pixels"
    target: str | None = None
    start: Literal["noise", "images"] = "noise"


@dataclass(frozen=True)
class HardenOptions:
    """Whether the classifier is fine-tuned on what was found.

    Args:
        harden: Fine-tune the classifier after the audit.
        harden_other: Prompt that is not audited and not to be forgotten. May be repeated, or be a file of prompts.
    """

    harden: bool = False
    harden_other: Annotated[tuple[str, ...], PromptTexts()] = ()


_OF_PROMPTS = (
    "prompt", "label", "judge", "transfer", "keep_features", "target", "radius", "shell", "radii", "num_starts",
    "tries", "confidence", "keep_weight", "checkpointing_steps", "coarse_steps", "calls", "white_noise", "best_of",
    "judge_patience", "stop_at_success", "start",
)  # fmt: skip
"""Flags that an audit of images from files does not read."""

_HARDENING = Group("harden_", ("learning_rate", "batch_size", "clean_others", "held_out", "seed", "attack"))


@dataclass(frozen=True)
class Audit:
    """The flags of `adjointdpm audit`."""

    task: AuditOptions
    model: ModelOptions
    harden: HardenOptions
    hardening: Annotated[HardenSettings, _HARDENING] = HardenSettings()
    attack: AuditSettings = AuditSettings()
    images: ImageOptions = ImageOptions()
    output: OutputOptions = OutputOptions(Path("outputs/audit"))

    def run(self, given: Given) -> None:
        """Audit a classifier, and harden it if that is wanted.

        Raises:
            InputError: A flag contradicts another one, or cannot be used.
        """
        task = self.task
        if task.classifier is None:
            raise InputError(
                "audit needs a --classifier with a model of your own: the bundled ones know its images alone"
            )
        hardens = [name for name in given.values if name.startswith("harden")]
        real = task.start == "images"
        if real:
            self.images.check_starts(given, ("num_starts", "tries", "best_of", *hardens))
        else:
            self.images.check(given, (*_OF_PROMPTS, *hardens))
        if self.images.images is not None and not real:
            run_on_images(given, self.images, task.classifier, self.model, self.attack, self.output)
            return
        if not task.prompt:
            raise InputError("audit needs a --prompt of images to be made, or a folder of --images")
        if not self.harden.harden:
            given.refuse_unused(hardens, "without --harden")
        if task.keep_features == "none":
            given.refuse_unused(("keep_weight",), "with --keep_features none")
        # The judge decides which images a hardening trains on, so that a checkpoint must agree on it.
        check_calls(given)
        folder, run = self.output.start(given, ("train_batch_size", *hardens))
        sampler = self.model.sampler()
        device, shape = sampler.noise(1).device, sampler.image_shape
        audited = classifier_of(task.classifier, device, shape)
        prompts, given_labels, images = list(task.prompt), list(task.label), None
        if real:
            prompts, given_labels, images = starts_of(self.images, sampler, audited, prompts, given_labels)
        starts = len(prompts) * self.attack.num_starts * self.attack.best_of
        check_memory(sampler, starts, self.attack.train_batch_size)
        also = self.harden.harden_other
        labels = labels_of(audited, also, None)
        others = {p: audited.labels[i] for p, i in zip(also, labels, strict=True)}
        shared: dict[str, Any] = {
            "features": self._features(sampler),
            "judge": judge_of(task.judge, sampler),
        }
        transfer = {name: classifier_of(name, device, shape) for name in task.transfer}
        found = run_audit(
            sampler,
            audited,
            prompts,
            given_labels or None,
            output=folder,
            settings=self.attack,
            target=task.target,
            transfer=transfer,
            images=images,
            run=run,
            **shared,
        )
        announce(f"misclassified: {found.success}")
        announce(f"misclassified, label preserved: {'no judge' if found.kept is None else found.kept}")
        if self.harden.harden:
            settings = replace(self.hardening, seed=self.attack.seed)
            harder = run_harden(
                found, sampler, audited, self.attack, settings, others=others, run=run, **shared
            )
            for name, (before, after) in harder.rates.items():
                if before is not None:
                    announce(f"after hardening, on fresh noise, {name}: {after}; before: {before}")
        announce(f"page: {(folder / 'index.html').resolve()}")

    def _features(self, sampler: Sampler) -> Any:
        """Return the features that are to stay near the original image's; None for none."""
        name = self.task.keep_features
        if name in ("none", "pixels"):
            return pixels if name == "pixels" else None
        kept = classifier_of(name, sampler.noise(1).device, sampler.image_shape)
        return HiddenStates(kept.model, kept.normalized, None)
