"""Harden a classifier: fine-tune it on what an audit found, and audit it again on fresh noise.

    round 1    fine-tune on what the audit's attacks ended in
    round k    attack the fine-tuned copy, add what that ends in, fine-tune it further

The attacks of the rounds are audits on noise of their own. Besides, every step of a fine-tuning can attack the latents
of its clean images (`HardenSettings.t`), which costs a gradient of the decoder in place of one of the whole sampling.

A copy that was only shown what fooled the original is fooled by something else; each further round finds that
(adversarial training: Madry et al., 2018, arXiv 1706.06083; here in the generator's noise, as Stutz et al., 2019,
arXiv 1812.00740, so that the images stay images of the thing). Beside them lie clean images of the same sampler,
so that the classifier does not forget.

The images are exported as a labelled folder (`train/<label>/*.png`, which ImageFolder and datasets read): `found`
fooled the classifier, `near` did not quite, `clean` were not attacked.
"""

import copy
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..._types import InputError
from ...files.html_report import Page
from ...files.images import output_folder
from ...metrics.image_classifier import Classifier, Labelled, as_classifier
from ...metrics.style_content import Features
from ...optimization.distributed import Processes
from ...optimization.loop import optimize
from ...optimization.seeds import key
from ...optimization.task import LoopSettings, RunOptions
from ...samplers.base import Sampler
from ..audit.audit import audit
from ..audit.result import AuditResult
from ..audit.settings import AuditSettings
from ..evaluation import Rate, example, predict
from ..report import About, write_report
from ..sampling import each_of
from .dataset import attacked_in, clean_images
from .finetune import FineTune
from .late_attack import LateAttack
from .settings import HardenSettings

__all__ = ["HardenResult", "harden"]


@dataclass(frozen=True)
class HardenResult:
    """Before and after, on starts and noise that the training has not seen.

    before, after              how often the same attack succeeds
    kept_before, kept_after    how often it does while the judge still recognizes the object; None without a judge
    clean_before, clean_after  how often fresh clean images are classified correctly
    others_before, others_after  the same of the other labels' images; None without any
    folder                     labelled images in `train`, the classifier in `classifier`, result.json and the page
    costs                      seconds
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
    costs: dict[str, Any]

    @property
    def rates(self) -> dict[str, tuple[Rate | None, Rate | None]]:
        """Each rate before and after, by what is counted."""
        return {
            "misclassified": (self.before, self.after),
            "misclassified, label preserved": (self.kept_before, self.kept_after),
            "clean images classified correctly": (self.clean_before, self.clean_after),
            "those of labels that were not audited": (self.others_before, self.others_after),
        }

    def as_dict(self) -> dict[str, Any]:
        """Return what result.json says of it."""
        rates = [f.name for f in fields(self) if f.name not in ("folder", "costs")]
        found = {name: rate and rate.as_dict() for name in rates for rate in [getattr(self, name)]}
        return {**found, "costs": self.costs}


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
    run: RunOptions = RunOptions(),
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
        run: whether the run is resumed, and whether it shows progress.

    Returns:
        HardenResult: how often the attack succeeds, and how often clean images are classified correctly, before and
            after.

    Raises:
        InputError: the audit found nothing to train on, the classifier is another one than the audit's, has no weights,
            or cannot be copied; t, and the sampler is no `FlowSampler` or its model cannot encode an image.
    """
    settings, began = settings or HardenSettings(), time.perf_counter()
    quietly = RunOptions(resume=run.resume, quiet=run.quiet)
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
    how = settings.attacks(attack)
    named = None if judge is None else as_classifier(judge, example(sampler), "judge")
    shown = each_of(list(pairs), settings.clean)
    late = [LateAttack.of(sampler, t, settings, how, shown, named) for t in settings.t]
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
            run=quietly,
        )

    clean = clean_images(sampler, pairs, settings.clean, settings.seed, attack, run.quiet)

    # The images that a late attack makes anew come first.
    more = clean
    if more_pairs:
        more += clean_images(sampler, more_pairs, settings.clean_others, settings.seed, attack, run.quiet)
    for turn in range(settings.rounds):
        if turn:
            seed, name = key(attack.seed, "round", turn), f"round-{turn + 1}"
            attacks += attacked_in(attacked(name, hard, seed, how))
        images = more + attacks.times(round(len(clean.labels) / 2 / len(attacks.labels)))
        loop = LoopSettings(
            steps=settings.steps,
            batch_size=settings.batch_size,
            max_grad_norm=1.0,
            validation_steps=min(settings.steps, max(50, settings.steps // 5)),
            seed=settings.seed + turn,
            folder=output_folder(folder / "state" / str(turn + 1)),
            checkpointing_steps=50,
            decay="cosine",
            run=replace(
                quietly,
                config={**asdict(settings), "audit": asdict(attack), "images": len(images.labels)},
            ),
        )
        optimize(
            FineTune(hard, *images.of(hard), settings.variants, settings.seed + turn, late),
            lambda leaves: torch.optim.Adam(leaves, settings.learning_rate),
            loop,
        )
        hard.requires_grad_(False)
    if Processes.here().first:
        hard.save(folder / "classifier")
        (more + attacks).export(folder / "train")

    def right(of: Mapping[str, str]) -> tuple[Rate, Rate]:
        seed = key(settings.seed, "held out")
        images, labels = clean_images(sampler, of, settings.held_out, seed, attack, run.quiet).of(
            classifier
        )
        before, after = (predict(each, images).argmax(1) == labels for each in (classifier, hard))
        return Rate.of_mask(before), Rate.of_mask(after)

    clean_rates, other_rates = right(pairs), right(more_pairs) if more_pairs else (None, None)
    seed = key(attack.seed, "fresh")
    before, after = attacked("before", classifier, seed), attacked("after", hard, seed)
    costs = {"seconds": time.perf_counter() - began}
    result = HardenResult(
        before.success, after.success, *clean_rates, *other_rates, before.kept, after.kept, folder, costs
    )
    if Processes.here().first:
        _report(result, sampler, classifier, settings, run)
    return result


def _report(
    result: HardenResult, sampler: Sampler, classifier: Labelled, settings: HardenSettings, run: RunOptions
) -> None:
    """Write result.json and the page."""
    page = Page("adjointdpm harden: a classifier, fine-tuned on what misled it")
    page.verdict = (
        f"On noise that the training has not seen, the same attack misleads the hardened copy in "
        f"{result.after.hits} of {result.after.of} images, and the original in {result.before.hits} of "
        f"{result.before.of}. Of fresh clean images, the copy classifies {result.clean_after.hits} of "
        f"{result.clean_after.of} correctly, and the original {result.clean_before.hits}."
    )
    rows = [
        [name, *("" if rate is None else str(rate) for rate in pair)] for name, pair in result.rates.items()
    ]
    page.table(["on fresh noise", "before", "after"], rows)
    path = result.folder / "classifier"
    closing = About(
        sampler,
        "cross-entropy of the classifier's logits",
        "lower is better",
        "The attack's loss with respect to the noise, and the classifier's with respect to its weights.",
        "the hardened classifier",
        [
            f'classifier = adjointdpm.load_classifier("{path}")'
            if isinstance(classifier, Classifier)
            else f'safetensors.torch.load_model(network, "{path / "model.safetensors"}")'
        ],
    )
    write_report("harden", result, asdict(settings), page, closing, run)


def _copy(classifier: Labelled) -> Labelled:
    """Return a copy whose weights can be trained and saved, both tried before there is any work to lose.

    Raises:
        InputError: there are no weights, or they cannot be copied.
    """
    if not any(p.is_floating_point() for p in classifier.parameters()):
        raise InputError("the classifier has no weights that could be trained; nothing can be hardened")
    try:
        return copy.deepcopy(classifier)
    except Exception as error:
        raise InputError(f"the classifier cannot be copied, as hardening needs it to: {error}") from error
