"""Harden a classifier: fine-tune it on what an audit found, and audit it again on fresh noise.

The pictures found are exported as a labelled folder (`train/<label>/*.png`, which ImageFolder and datasets
read); beside them lie clean pictures of the same sampler, so that the classifier does not forget.
"""

import copy
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._types import InputError
from ..pictures import output_folder, png
from ..sampler import Sampler
from ..zoo import Classifier
from .audit import audit
from .checkpoint import write_file
from .loop import optimise
from .processes import Processes
from .result import AuditResult
from .scores import Rate, said, sampled
from .seeds import key, noise_of
from .settings import AuditSettings
from .task import Loop, Losses, Task
from .witness import on_file

__all__ = ["HardenResult", "HardenSettings", "harden"]


@dataclass(frozen=True)
class HardenSettings:
    """How a classifier is hardened.

    Args:
        steps, learning_rate, batch_size: of the fine-tuning (Adam).
        clean: clean pictures a prompt to train on.
        held_out: fresh clean pictures a prompt to measure the clean accuracy on.
        seed: of the clean pictures and the batches; fresh starts are drawn from another.
    """

    steps: int = 100
    learning_rate: float = 1e-4
    batch_size: int = 32
    clean: int = 4
    held_out: int = 4
    seed: int = 0


@dataclass(frozen=True)
class HardenResult:
    """Before and after, on starts and noise that the training has not seen.

    before, after              how often the same attack succeeds
    clean_before, clean_after  how often fresh clean pictures are read right
    folder                     labelled pictures in `train`, the classifier in `classifier`, and result.json
    """

    before: Rate
    after: Rate
    clean_before: Rate
    clean_after: Rate
    folder: Path

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {n: getattr(self, n).as_dict() for n in ("before", "after", "clean_before", "clean_after")}


class _FineTune(Task):
    """Cross-entropy of a classifier on pictures, on its logits. Its running statistics stay as they are."""

    def __init__(self, classifier: Classifier, images: Tensor, labels: Tensor) -> None:
        self.classifier, self.images, self.labels, self.items = classifier, images, labels, len(images)
        classifier.requires_grad_()
        self.variables: Mapping[str, Tensor] = dict(classifier.named_parameters())

    def losses(self, step: int, items: list[int]) -> Losses:
        logits = self.classifier(self.images[items])
        return Losses(torch.nn.functional.cross_entropy(logits, self.labels[items], reduction="none"))


def harden(
    found: AuditResult,
    sampler: Sampler,
    classifier: Classifier,
    attack: AuditSettings,
    settings: HardenSettings | None = None,
    *,
    resume: bool = False,
    quiet: bool = False,
) -> HardenResult:
    """Fine-tune a copy of the audited classifier on the pictures that fooled it.

    Use it on an audit of many starts; a handful teaches it those pictures and no more. The audit's judge is not
    asked: a picture that no longer shows its thing would teach the wrong label, so those are left out where a
    judge was there to name them.

    Args:
        found: of `audit`.
        sampler, classifier, attack: those of the audit; the attack is made again on fresh noise.
        settings: of the fine-tuning.
        resume, quiet: as in `audit`.
    Raises:
        InputError: the audit found nothing to train on.
    """
    settings = settings or HardenSettings()
    folder = output_folder(found.folder / "hardened")
    chosen, pictures = _found(found)
    if not chosen:
        raise InputError(
            "the audit found no picture that fools the classifier and still shows its thing, so there is nothing to "
            "train on; audit more starts, in more steps or a larger ball"
        )
    pairs = dict(zip(found.prompts, found.labels, strict=True))
    clean, clean_labels = _clean(sampler, classifier, pairs, settings.clean, settings.seed, attack)
    images = torch.cat([pictures.to(clean) / 255, clean])
    own = [classifier.index(found.labels[i]) for i in chosen]
    labels = torch.cat([torch.tensor(own, device=clean.device), clean_labels])
    if Processes.here().first:
        _export(folder / "train", classifier, images, labels, len(chosen))
    hard = copy.deepcopy(classifier)
    loop = Loop(
        steps=settings.steps,
        batch_size=settings.batch_size,
        seed=settings.seed,
        folder=output_folder(folder / "state"),
        resume=resume,
        quiet=quiet,
        decay="cosine",
        config={**asdict(settings), "pictures": len(images)},
    )
    optimise(
        _FineTune(hard, images, labels),
        lambda leaves: torch.optim.Adam(leaves, settings.learning_rate),
        loop,
    )
    hard.requires_grad_(False)
    fresh, fresh_labels = _clean(
        sampler, classifier, pairs, settings.held_out, key(settings.seed, "held out"), attack
    )
    again = replace(attack, seed=key(attack.seed, "fresh"), radii=(), controls=False)

    def success(name: str, audited: Classifier) -> Rate:
        return audit(
            sampler,
            audited,
            list(pairs),
            list(pairs.values()),
            output=folder / name,
            settings=again,
            resume=resume,
            quiet=quiet,
        ).success

    result = HardenResult(
        before=success("before", classifier),
        after=success("after", hard),
        clean_before=Rate.of_mask(said(classifier, fresh).argmax(1) == fresh_labels),
        clean_after=Rate.of_mask(said(hard, fresh).argmax(1) == fresh_labels),
        folder=folder,
    )
    if Processes.here().first:
        _save(hard, folder / "classifier")
        write_file(folder / "result.json", json.dumps(result.as_dict(), indent=1).encode())
    return result


def _found(found: AuditResult) -> tuple[list[int], Tensor]:
    """Every picture that fooled the classifier and still shows its thing, of all radii: its start, and itself."""
    rows, pictures = [], []
    for each in found.curve.values():
        mask = each.fooled if each.shows is None else each.fooled & each.shows
        rows += mask.nonzero()[:, 0].tolist()
        pictures.append(each.images[mask])
    return rows, torch.cat(pictures)


def _clean(
    sampler: Sampler,
    classifier: Classifier,
    pairs: Mapping[str, str],
    each: int,
    seed: int,
    s: AuditSettings,
) -> tuple[Tensor, Tensor]:
    """Pictures of every prompt as files hold them, and their labels."""
    prompts = [prompt for prompt in pairs for _ in range(each)]
    noise = noise_of(sampler, [key(seed, "clean", i) for i in range(len(prompts))])
    images = on_file(sampled(sampler, noise, sampler.encode(prompts), s.batch_size)).to(noise)
    labels = torch.tensor([classifier.index(pairs[prompt]) for prompt in prompts], device=noise.device)
    return images, labels


def _export(folder: Path, classifier: Classifier, images: Tensor, labels: Tensor, found: int) -> None:
    for i, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        name = "".join(c if c.isalnum() or c in " -_" else "_" for c in classifier.labels[label])
        kind = "found" if i < found else "clean"
        content = png((image * 255).round().to("cpu", torch.uint8))
        write_file(output_folder(folder / name) / f"{kind}-{i:05d}.png", content)


def _save(classifier: Classifier, folder: Path) -> None:
    """As a folder of transformers, which `load_classifier` reads."""
    classifier.model.save_pretrained(folder)
    side = classifier.size
    about = {
        "image_mean": classifier.mean.flatten().tolist(),
        "image_std": classifier.std.flatten().tolist(),
        "size": None if side is None else {"height": side, "width": side},
    }
    write_file(folder / "preprocessor_config.json", json.dumps(about).encode())
