"""The labelled images that hardening trains on: what attacks ended in, and clean ones beside it.

found    fooled the classifier, and still shows its thing
near     was attacked, and did not fool it
clean    was not attacked
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...files.atomic_write import write_file
from ...files.images import as_8_bit, output_folder, png
from ...metrics.image_classifier import Labelled as Named
from ...optimization.seeds import key
from ...samplers.base import Sampler
from ..audit.result import AuditResult
from ..audit.settings import AuditSettings
from ..sampling import each_of, noise_of, sampled

__all__ = ["Labelled", "attacked_in", "clean_images"]


@dataclass(frozen=True, eq=False)
class Labelled:
    """Images to train on.

    images  (n, channels, height, width), 8 bits
    labels  what each shows
    kinds   found, near or clean
    """

    images: Tensor
    labels: list[str]
    kinds: list[str]

    def __add__(self, more: "Labelled") -> "Labelled":
        images = torch.cat([self.images, more.images.to(self.images.device)])
        return Labelled(images, self.labels + more.labels, self.kinds + more.kinds)

    def times(self, number: int) -> "Labelled":
        """Return each image so many times, at least once."""
        number = max(1, number)
        return Labelled(self.images.repeat(number, 1, 1, 1), self.labels * number, self.kinds * number)

    def of(self, classifier: Named) -> tuple[Tensor, Tensor]:
        """Return images in [0, 1] and labels as the classifier takes them."""
        weight = next(classifier.parameters())
        labels = [classifier.index(label) for label in self.labels]
        return self.images.to(weight) / 255, torch.tensor(labels, device=weight.device)

    def export(self, folder: Path) -> None:
        """`folder/<label>/<kind>-<number>.png`, each label in a folder of its own."""
        names: dict[str, str] = {}
        for label in sorted(set(self.labels)):
            name = "".join(c if c.isalnum() or c in " -_" else "_" for c in label)[:60].strip() or "_"
            taken = sum(each == name or each.startswith(f"{name} (") for each in names.values())
            names[label] = f"{name} ({taken + 1})" if taken else name
        for i, (image, label, kind) in enumerate(zip(self.images, self.labels, self.kinds, strict=True)):
            write_file(output_folder(folder / names[label]) / f"{kind}-{i:05d}.png", png(image.cpu()))


def attacked_in(found: AuditResult) -> Labelled:
    """Return final images of the attacks at every radius in which the judge still recognizes the object."""
    every = []
    for each in found.curve.values():
        shows = torch.ones_like(each.fooled) if each.shows is None else each.shows
        rows = shows.nonzero()[:, 0].tolist()
        kinds = ["found" if each.fooled[i] else "near" for i in rows]
        every.append(Labelled(each.images[rows], [found.labels[i] for i in rows], kinds))
    return sum(every[1:], every[0])


def clean_images(
    sampler: Sampler, pairs: Mapping[str, str], each: int, seed: int, s: AuditSettings, quiet: bool = False
) -> Labelled:
    """Return images of every prompt as files hold them."""
    prompts = each_of(list(pairs), each)
    noise = noise_of(sampler, [key(seed, "clean", prompt, i % each) for i, prompt in enumerate(prompts)])
    cond = sampler.encode(prompts)
    images = sampled(sampler, noise, cond, s.train_batch_size, what="clean images", quiet=quiet)
    return Labelled(as_8_bit(images), [pairs[prompt] for prompt in prompts], ["clean"] * len(prompts))
