"""Harden a classifier: fine-tune it on what an audit found, and audit it again on fresh noise.

    round 1    fine-tune on what the audit's attacks ended in
    round k    attack the fine-tuned copy on noise of its own, add what that ends in, fine-tune it further

A copy that was only shown what fooled the original is fooled by something else; each further round finds that
(adversarial training: Madry et al., 2018, arXiv 1706.06083; here in the generator's noise, as Stutz et al., 2019,
arXiv 1812.00740, so that the images stay images of the thing). Beside them lie clean images of the same sampler,
so that the classifier does not forget.

The images are exported as a labelled folder (`train/<label>/*.png`, which ImageFolder and datasets read): `found`
fooled the classifier, `near` did not quite, `clean` were not attacked.
"""

import copy
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..._types import InputError
from ...files.atomic_write import write_file
from ...files.images import output_folder
from ...metrics.image_classifier import Labelled, as_classifier
from ...metrics.style_content import Features
from ...optimization.distributed import Processes
from ...optimization.loop import optimize
from ...optimization.seeds import key
from ...optimization.task import Loop
from ...samplers.base import Sampler
from ..audit.audit import audit
from ..audit.result import AuditResult
from ..audit.settings import AuditSettings
from ..evaluation import Rate, example, predict
from .dataset import attacked_in, clean_images
from .finetune import FineTune

__all__ = ["HardenResult", "HardenSettings", "harden"]


@dataclass(frozen=True)
class HardenSettings:
    """How a classifier is hardened.

    Args:
        rounds: of attack and fine-tuning; the first takes the audit's images, and costs no attack.
        steps, learning_rate, batch_size: of each fine-tuning (Adam).
        clean, others: clean images to train on, of each audited prompt and of each other one. What was attacked is
            repeated until it is half as much as the former: a few images, seen too often, are learned by heart.
        held_out: fresh clean images a prompt to measure the clean accuracy on.
        seed: of the clean images and the batches; fresh starts are drawn from another.
        variant_steps: half of the loss is that of the worst variant of each image (moved, bent, tinted: see
            `variants`), sought in so many steps, which teaches more of a few images; 0 for none, as where a mirror or
            a tint would change a label.
        attack: of the rounds; the audit's own if None. A larger ball and a larger confidence find images that lie
            further beyond the boundary, and those teach more; fewer steps leave time for more rounds.
    """

    rounds: int = 1
    steps: int = 500
    learning_rate: float = 5e-4
    batch_size: int = 48
    clean: int = 16
    others: int = 4
    held_out: int = 4
    seed: int = 0
    variant_steps: int = 3
    attack: AuditSettings | None = None

    def __post_init__(self) -> None:
        for name in ("rounds", "steps", "batch_size", "clean", "others", "held_out"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} of a hardening must be at least 1, but is {getattr(self, name)}")
        if self.variant_steps < 0:
            raise InputError(
                f"variant_steps of a hardening must be at least 0, but is {self.variant_steps}"
            )


@dataclass(frozen=True)
class HardenResult:
    """Before and after, on starts and noise that the training has not seen.

    before, after              how often the same attack succeeds
    kept_before, kept_after    how often it does while the judge still sees the thing; None without a judge
    clean_before, clean_after  how often fresh clean images are read right
    others_before, others_after  the same of the other labels' images; None without any
    folder                     labelled images in `train`, the classifier in `classifier`, and result.json
    """

    before: Rate
    after: Rate
    clean_before: Rate
    clean_after: Rate
    others_before: Rate | None
    others_after: Rate | None
    kept_before: Rate | None
    kept_after: Rate | None
    folder: Path

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        names = [f.name for f in fields(self) if f.name != "folder"]
        return {name: rate and rate.as_dict() for name in names for rate in [getattr(self, name)]}


def harden(
    found: AuditResult,
    sampler: Sampler,
    classifier: nn.Module,
    attack: AuditSettings,
    settings: HardenSettings | None = None,
    *,
    judge: nn.Module | None = None,
    features: Features | None = None,
    others: Mapping[str, str | int] | None = None,
    resume: bool = False,
    quiet: bool = False,
) -> HardenResult:
    """Fine-tune a copy of the audited classifier on what an attack makes of images it reads right.

    Use it on an audit of many starts; a handful teaches it those images and no more. An image that no longer shows
    its thing would teach the wrong label, so those are left out where a judge is there to name them.

    Args:
        found: of `audit`.
        sampler, classifier, attack: those of the audit; the attack is made again on fresh noise.
        settings: of the fine-tuning.
        judge, features: those of the audit.
        others: prompts, each with its label, of things that were not audited. Name those that the classifier is to
            know further on: it forgets what it is not shown, and seems robust where it can no longer say another label.
        resume, quiet: as in `audit`.

    Raises:
        InputError: the audit found nothing to train on, the classifier is another one than the audit's, has no weights,
            or cannot be copied.
    """
    settings = settings or HardenSettings()
    folder = output_folder(found.folder / "hardened")
    classifier = as_classifier(classifier, example(sampler), "classifier")
    pairs = dict(zip(found.prompts, found.labels, strict=True))
    strange = sorted(set(found.labels) - set(classifier.labels))
    if strange:
        raise InputError(
            f"the classifier has no label {strange[0]!r}, so it is not the one that was audited"
        )
    more_pairs = {p: classifier.labels[classifier.index(label)] for p, label in (others or {}).items()}
    hard = _copy(classifier)
    attacks = attacked_in(found)
    if "found" not in attacks.kinds:
        raise InputError(
            "the audit found no image that fools the classifier and still shows its thing, so there is nothing to "
            "train on; audit more starts, in more steps or a larger ball"
        )

    def attacked(name: str, audited: Labelled, seed: int, how: AuditSettings = attack) -> AuditResult:
        return audit(
            sampler,
            audited,
            list(pairs),
            list(pairs.values()),
            output=folder / name,
            settings=replace(how, seed=seed, radii=(), controls=False),
            judge=judge,
            features=features,
            resume=resume,
            quiet=quiet,
        )

    clean = clean_images(sampler, pairs, settings.clean, settings.seed, attack)
    more = clean
    if more_pairs:
        more += clean_images(sampler, more_pairs, settings.others, settings.seed, attack)
    for turn in range(settings.rounds):
        if turn:
            seed = key(attack.seed, "round", turn)
            attacks += attacked_in(attacked(f"round-{turn + 1}", hard, seed, settings.attack or attack))
        shown = attacks.times(round(len(clean.labels) / 2 / len(attacks.labels))) + more
        loop = Loop(
            steps=settings.steps,
            batch_size=settings.batch_size,
            max_grad_norm=1.0,
            validation_steps=max(1, settings.steps // 5),
            seed=settings.seed + turn,
            folder=output_folder(folder / "state" / str(turn + 1)),
            checkpointing_steps=50,
            resume=resume,
            quiet=quiet,
            decay="cosine",
            config={**asdict(settings), "audit": asdict(attack), "pictures": len(shown.labels)},
        )
        optimize(
            FineTune(hard, *shown.of(hard), settings.variant_steps, settings.seed + turn),
            lambda leaves: torch.optim.Adam(leaves, settings.learning_rate),
            loop,
        )
        hard.requires_grad_(False)
    if Processes.here().first:
        hard.save(folder / "classifier")
        (attacks + more).export(folder / "train")

    def right(of: Mapping[str, str]) -> tuple[Rate, Rate]:
        seed = key(settings.seed, "held out")
        images, labels = clean_images(sampler, of, settings.held_out, seed, attack).of(classifier)
        before, after = (predict(each, images).argmax(1) == labels for each in (classifier, hard))
        return Rate.of_mask(before), Rate.of_mask(after)

    clean_rates, other_rates = right(pairs), right(more_pairs) if more_pairs else (None, None)
    seed = key(attack.seed, "fresh")
    before, after = attacked("before", classifier, seed), attacked("after", hard, seed)
    result = HardenResult(
        before.success, after.success, *clean_rates, *other_rates, before.kept, after.kept, folder
    )
    if Processes.here().first:
        write_file(folder / "result.json", json.dumps(result.as_dict(), indent=1).encode())
    return result


def _copy(classifier: Labelled) -> Labelled:
    """A copy whose weights can be trained and saved, both tried before there is any work to lose."""
    if not any(p.is_floating_point() for p in classifier.parameters()):
        raise InputError("the classifier has no weights that could be trained; nothing can be hardened")
    try:
        return copy.deepcopy(classifier)
    except Exception as error:
        raise InputError(f"the classifier cannot be copied, as hardening needs it to: {error}") from error
