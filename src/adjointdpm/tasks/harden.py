"""Harden a classifier: fine-tune it on what an audit found, and audit it again on fresh noise.

    round 1    fine-tune on the audit's finds
    round k    attack the fine-tuned copy on noise of its own, add what is found, fine-tune it further

A copy that was only shown what fooled the original is fooled by something else; each further round finds that
(adversarial training: Madry et al., 2018, arXiv 1706.06083; here in the generator's noise, as Stutz et al., 2019,
arXiv 1812.00740, so that the pictures stay pictures of the thing).

The pictures found are exported as a labelled folder (`train/<label>/*.png`, which ImageFolder and datasets
read); beside them lie clean pictures of the same sampler, so that the classifier does not forget.
"""

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._types import InputError
from ..metrics.features import Features
from ..pictures import as_8_bit, output_folder, png
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
        rounds: of attack and fine-tuning; the first takes the audit's finds, and costs no attack.
        steps, learning_rate, batch_size: of each fine-tuning (Adam).
        clean: clean pictures a prompt to train on.
        held_out: fresh clean pictures a prompt to measure the clean accuracy on.
        seed: of the clean pictures and the batches; fresh starts are drawn from another.
        pixel_radius: r, in [0, 1) of a pixel's range; 0 to train on the pictures as they are. With r > 0 half of the
            loss is that of the worst picture that differs by at most r in each pixel, which teaches more of a few
            finds; too large a value costs clean accuracy.
        pixel_steps: of the search for that picture.
        attack: of the rounds; the audit's own if None. A larger ball and a larger confidence find pictures that lie
            further beyond the boundary, and those teach more; fewer steps leave time for more rounds.
    """

    rounds: int = 1
    steps: int = 100
    learning_rate: float = 1e-4
    batch_size: int = 32
    clean: int = 4
    held_out: int = 4
    seed: int = 0
    pixel_radius: float = 0.0
    pixel_steps: int = 3
    attack: AuditSettings | None = None

    def __post_init__(self) -> None:
        for name in ("rounds", "steps", "batch_size", "clean", "held_out", "pixel_steps"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} of a hardening must be at least 1, but is {getattr(self, name)}")
        if not 0 <= self.pixel_radius < 1:
            raise InputError(f"pixel_radius must be in [0, 1), but is {self.pixel_radius}")


@dataclass(frozen=True)
class HardenResult:
    """Before and after, on starts and noise that the training has not seen.

    before, after              how often the same attack succeeds
    kept_before, kept_after    how often it does while the judge still sees the thing; None without a judge
    clean_before, clean_after  how often fresh clean pictures are read right
    folder                     labelled pictures in `train`, the classifier in `classifier`, and result.json
    """

    before: Rate
    after: Rate
    clean_before: Rate
    clean_after: Rate
    kept_before: Rate | None
    kept_after: Rate | None
    folder: Path

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        rates = {n: getattr(self, n) for n in ("before", "after", "kept_before", "kept_after")}
        rates |= {"clean_before": self.clean_before, "clean_after": self.clean_after}
        return {name: rate and rate.as_dict() for name, rate in rates.items()}


class _FineTune(Task):
    """Cross-entropy h on a classifier's logits; with r > 0 also on the worst pictures in reach.

        (h(x) + max_{|d|_inf <= r} h(x + d)) / 2

    Its running statistics stay as they are. The maximum is sought in signed steps (Madry et al., 2018,
    arXiv 1706.06083).
    """

    def __init__(
        self, classifier: Classifier, images: Tensor, labels: Tensor, settings: HardenSettings
    ) -> None:
        self.classifier, self.images, self.labels, self.items = classifier, images, labels, len(images)
        self.settings = settings
        classifier.requires_grad_()
        self.variables: Mapping[str, Tensor] = dict(classifier.named_parameters())

    def losses(self, step: int, items: list[int]) -> Losses:
        images, labels = self.images[items], self.labels[items]
        losses = self.entropies(images, labels)
        if self.settings.pixel_radius:
            losses = (losses + self.entropies(self.worst(images, labels), labels)) / 2
        return Losses(losses)

    def entropies(self, images: Tensor, labels: Tensor) -> Tensor:
        """h of each picture."""
        return torch.nn.functional.cross_entropy(self.classifier(images), labels, reduction="none")

    def worst(self, images: Tensor, labels: Tensor) -> Tensor:
        """x + d, found in steps that could cross the ball."""
        radius, steps = self.settings.pixel_radius, self.settings.pixel_steps
        low, high = (images - radius).clamp(min=0), (images + radius).clamp(max=1)
        moved = images
        for _ in range(steps):
            moved = moved.detach().requires_grad_()
            with torch.enable_grad():
                (slope,) = torch.autograd.grad(self.entropies(moved, labels).sum(), moved)
            moved = torch.clamp(moved.detach() + 2 * radius / steps * slope.sign(), low, high)
        return moved

    def validate(self, step: int) -> float:
        # Over all pictures: the lowest loss of a batch may be an easy batch's.
        with torch.no_grad():
            batches = torch.arange(self.items).split(self.settings.batch_size)
            parts = [self.losses(step, items.tolist()).values for items in batches]
        return float(torch.cat(parts).mean())


def harden(
    found: AuditResult,
    sampler: Sampler,
    classifier: Classifier,
    attack: AuditSettings,
    settings: HardenSettings | None = None,
    *,
    judge: Classifier | None = None,
    features: Features | None = None,
    resume: bool = False,
    quiet: bool = False,
) -> HardenResult:
    """Fine-tune a copy of the audited classifier on the pictures that fooled it.

    Use it on an audit of many starts; a handful teaches it those pictures and no more. A picture that no longer shows
    its thing would teach the wrong label, so those are left out where a judge is there to name them.

    Args:
        found: of `audit`.
        sampler, classifier, attack: those of the audit; the attack is made again on fresh noise.
        settings: of the fine-tuning.
        judge, features: those of the audit.
        resume, quiet: as in `audit`.
    Raises:
        InputError: the audit found nothing to train on.
    """
    settings = settings or HardenSettings()
    folder = output_folder(found.folder / "hardened")
    pairs = dict(zip(found.prompts, found.labels, strict=True))
    finds, owners = _found(found)
    if not owners:
        raise InputError(
            "the audit found no picture that fools the classifier and still shows its thing, so there is nothing to "
            "train on; audit more starts, in more steps or a larger ball"
        )

    def attacked(name: str, audited: Classifier, seed: int, how: AuditSettings = attack) -> AuditResult:
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

    def clean_pictures(each: int, seed: int) -> tuple[Tensor, Tensor]:
        images, names = _clean(sampler, pairs, each, seed, attack)
        return images, torch.tensor([classifier.index(name) for name in names], device=images.device)

    clean, clean_labels = clean_pictures(settings.clean, settings.seed)
    hard = copy.deepcopy(classifier)
    for turn in range(settings.rounds):
        if turn:
            seed = key(attack.seed, "round", turn)
            more, whose = _found(attacked(f"round-{turn + 1}", hard, seed, settings.attack or attack))
            finds, owners = torch.cat([finds, more]), owners + whose
        own = torch.tensor([classifier.index(name) for name in owners], device=clean.device)
        images = torch.cat([finds.to(clean) / 255, clean])
        loop = Loop(
            steps=settings.steps,
            batch_size=settings.batch_size,
            validation_steps=10,
            seed=settings.seed + turn,
            folder=output_folder(folder / "state" / str(turn + 1)),
            resume=resume,
            quiet=quiet,
            decay="cosine",
            config={**asdict(settings), "pictures": len(images)},
        )
        optimise(
            _FineTune(hard, images, torch.cat([own, clean_labels]), settings),
            lambda leaves: torch.optim.Adam(leaves, settings.learning_rate),
            loop,
        )
        hard.requires_grad_(False)
    if Processes.here().first:
        _export(folder / "train", finds, owners, "found")
        _export(
            folder / "train", as_8_bit(clean), [classifier.labels[int(y)] for y in clean_labels], "clean"
        )
    fresh, fresh_labels = clean_pictures(settings.held_out, key(settings.seed, "held out"))
    seed = key(attack.seed, "fresh")
    before, after = attacked("before", classifier, seed), attacked("after", hard, seed)
    result = HardenResult(
        before=before.success,
        after=after.success,
        kept_before=before.kept,
        kept_after=after.kept,
        clean_before=Rate.of_mask(said(classifier, fresh).argmax(1) == fresh_labels),
        clean_after=Rate.of_mask(said(hard, fresh).argmax(1) == fresh_labels),
        folder=folder,
    )
    if Processes.here().first:
        _save(hard, folder / "classifier")
        write_file(folder / "result.json", json.dumps(result.as_dict(), indent=1).encode())
    return result


def _found(found: AuditResult) -> tuple[Tensor, list[str]]:
    """Every picture (8 bits) that fooled the classifier and still shows its thing, of all radii, and its label."""
    pictures, labels = [], []
    for each in found.curve.values():
        mask = each.fooled if each.shows is None else each.fooled & each.shows
        labels += [found.labels[i] for i in mask.nonzero()[:, 0].tolist()]
        pictures.append(each.images[mask])
    return torch.cat(pictures), labels


def _clean(
    sampler: Sampler, pairs: Mapping[str, str], each: int, seed: int, s: AuditSettings
) -> tuple[Tensor, list[str]]:
    """Pictures of every prompt as files hold them, and their labels."""
    prompts = [prompt for prompt in pairs for _ in range(each)]
    noise = noise_of(sampler, [key(seed, "clean", i) for i in range(len(prompts))])
    images = sampled(sampler, noise, sampler.encode(prompts), s.batch_size)
    return on_file(images).to(noise), [pairs[prompt] for prompt in prompts]


def _export(folder: Path, pictures: Tensor, labels: Sequence[str], kind: str) -> None:
    """Pictures of 8 bits, as `folder/<label>/<kind>-<number>.png`."""
    for i, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        name = "".join(c if c.isalnum() or c in " -_" else "_" for c in label)
        write_file(output_folder(folder / name) / f"{kind}-{i:05d}.png", png(picture.cpu()))


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
