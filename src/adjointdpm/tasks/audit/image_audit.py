"""Audit a classifier, purified or plain, on given images: what is left of its accuracy under an attack.

    purified = adp.Purified(sampler, classifier, t=0.1, steps=20)
    adp.tasks.audit_images(purified, images, labels, output="outputs/audit", attack=Attack(draws=16))

What is judged are the saved files, read again, on draws that no attack has seen; beside the attack stands random noise
in the same ball at as many denoiser calls. For each success, the smallest change on the way to it that is one, too, is
found by bisection.
"""

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..._types import InputError
from ...attacks import Attack, ImageBall, Verdict, judged, random_search, surrogate
from ...attacks.bisection import smallest
from ...attacks.expectation import is_random, over_draws
from ...attacks.losses import check_logits
from ...files.atomic_write import write_file
from ...files.checkpoint import save_checkpoint
from ...files.images import as_8_bit, output_folder, png, read_image
from ...metrics.image_classifier import Labelled, PlainClassifier
from ...optimization.progress import progress
from ...optimization.run_folder import alone, finished_part
from ...optimization.seeds import forked, key
from ...optimization.task import RunOptions
from ...samplers.purified import Purified
from ..report import About, as_csv, steps_of, write_report
from ..sampling import parts
from .image_report import page_of_images
from .image_result import ImageAuditResult

__all__ = ["audit_images"]


@alone
def audit_images(
    classifier: nn.Module,
    images: Tensor,
    labels: Sequence[str | int],
    *,
    output: str | Path,
    attack: Attack | None = None,
    gradient: str = "exact",
    votes: int = 5,
    controls: bool = True,
    files: Sequence[str] | None = None,
    run: RunOptions = RunOptions(),
) -> ImageAuditResult:
    """Attack given images, and report how many a classifier still reads right.

    Use it to find out whether a defence holds. A number that it returns is an upper bound of the robust accuracy: a
    better attack may leave less.

    Args:
        classifier: images in [0, 1] to logits: a `Purified`, whose single purifications are attacked and which is
            judged by their vote, or any other module; its `labels`, if it has some, name the classes.
        images: (batch, 3, height, width), in [0, 1]; rounded to 8 bits.
        labels: the class of each, by name or number.
        output: a folder for the images found, result.json, images.csv and the page.
        attack: how the images are looked for, in an `ImageBall`; it goes on with other images where `attack.batch`
            are done, and is resumed there.
        gradient: exact, or one of the wrong ones, to measure what they hide; see `attacks.surrogate`.
        votes: number of fresh draws on which each image is judged, at least 1; a plain classifier needs one.
        controls: whether random noise is tried, too.
        files: the images' names in the report; their numbers by default.
        run: whether the run is resumed, and what it reports.

    Returns:
        ImageAuditResult: accuracies before and after, and the images that were found.

    Raises:
        InputError: images of another size, form or range, an unknown label, probabilities in place of logits, a batch
            normalization in training mode, no gradient, no image that the classifier reads right, or a folder that
            cannot be written or that is of another run.
        NonFiniteError: logits, a loss or its gradient are not finite; the images that were done are kept for `resume`.

    Warns:
        UserWarning: a randomized classifier is attacked along single draws.
    """
    began, folder, attack = time.perf_counter(), output_folder(output), attack or Attack()
    if not isinstance(attack.ball, ImageBall):
        raise InputError(f"images are attacked in an ImageBall, but the ball is {attack.ball}")
    if votes < 1:
        raise InputError(f"votes must be at least 1, but is {votes}")
    if images.ndim != 4 or images.shape[1] != 3 or not len(images):
        raise InputError(f"images must be (batch, 3, height, width), but are {tuple(images.shape)}")
    if len(labels) != len(images):
        raise InputError(f"there are {len(images)} images and {len(labels)} labels; give one for each")
    images = attack.ball.centre_of(images)
    single = classifier.replace(votes=1) if isinstance(classifier, Purified) else classifier
    named = _named(single, images[:2])
    numbers = torch.tensor([named.index(label) for label in labels], device=images.device)
    attacked = surrogate(classifier, gradient)
    randomized = is_random(single, images[:2])
    if randomized and attack.draws == 1:
        warnings.warn(
            "the classifier draws noise, but each step of the attack follows a single draw, so that its robustness "
            "will seem higher than it is; take the mean over 8 draws or more (draws=, --draws)",
            stacklevel=3,
        )
    work = _ImageAudit(single, attacked, attack, gradient, votes, controls, folder, run)
    costs = work.costs(images[:1], numbers[:1])
    before = judged(
        single, images, numbers, draws=votes, seed=key(attack.seed, "clean"), batch=attack.batch
    )
    right = ~before.majority
    if not bool(right.any()):
        raise InputError(
            f"the classifier reads none of {len(images)} images right, so there is nothing to attack; check the labels"
        )
    mine, ys = images[right], numbers[right]
    content, after, losses, zeros = work.attacked(mine, ys)
    random = work.random(mine, ys, costs) if controls else None
    found = content.to(images) / 255
    nearest = work.smallest(found, mine, ys, after)
    result = ImageAuditResult(
        folder=folder,
        files=list(files or map(str, range(len(images)))),
        labels=numbers.cpu(),
        names=named.labels,
        images=as_8_bit(images),
        right=right.cpu(),
        before=before,
        found=content,
        after=after,
        random=random,
        distances=attack.ball.distance(found, mine).cpu(),
        smallest=as_8_bit(nearest),
        smallest_distances=attack.ball.distance(nearest, mine).cpu(),
        randomized=randomized,
        zero_gradients=zeros,
        losses=losses,
        costs={**costs, "seconds": time.perf_counter() - began},
    )
    work.report(result, classifier, found)
    return result


def _named(classifier: nn.Module, images: Tensor) -> Labelled:
    """Return the classifier with names for its classes, after it was tried.

    Raises:
        InputError: it fails, or does not return finite logits of two classes or more.
    """
    inner = classifier.classifier if isinstance(classifier, Purified) else classifier
    logits = over_draws(classifier, images, 1, None, "try")[0]
    if logits.ndim != 2 or logits.shape[1] < 2 or not bool(logits.isfinite().all()):
        raise InputError(
            f"the classifier must return finite logits (batch, classes) of two classes or more, but returned "
            f"{tuple(logits.shape)}"
        )
    check_logits(logits)
    if isinstance(inner, Labelled):
        return inner
    names = getattr(inner, "labels", None) or [str(i) for i in range(logits.shape[1])]
    return PlainClassifier(inner, names)


@dataclass(frozen=True, eq=False)
class _ImageAudit:
    """One audit under way."""

    single: nn.Module
    attacked_module: nn.Module
    attack: Attack
    gradient: str
    votes: int
    controls: bool
    folder: Path
    run: RunOptions

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the result."""
        attack = self.attack
        about = {name: repr(getattr(attack, name)) for name in ("ball", "method")}
        about |= {
            name: getattr(attack, name)
            for name in ("loss", "steps", "draws", "restarts", "targets", "batch", "seed")
        }
        defence = {}
        if isinstance(self.single, Purified):
            sampler = self.single.sampler
            defence = {"t": self.single.t, "purification_steps": self.single.steps}
            defence |= {
                "solver": repr(sampler.solver or steps_of(sampler)),
                "adjoint": repr(sampler.adjoint),
            }
        own = {"gradient": self.gradient, "votes": self.votes, "controls": self.controls}
        return {**self.run.config, **about, **defence, **own}

    def costs(self, image: Tensor, label: Tensor) -> dict[str, Any]:
        """Return what a gradient and a draw take, after both were tried.

        Raises:
            InputError: there is no gradient.
        """
        leaf = image.clone().requires_grad_()
        with forked(self.attack.seed, "costs"):
            logits = self.attacked_module(leaf)
            own = logits[0, label[0]]
            (gradient,) = (
                torch.autograd.grad(own, leaf, allow_unused=True) if own.requires_grad else (None,)
            )
            if gradient is None:
                raise InputError(
                    "the classifier's logits have no gradient with respect to the image: look for a detached tensor, "
                    "an argmax or a no_grad in it"
                )
        attack = self.attack
        gradients = attack.steps * attack.restarts * max(1, attack.targets)
        costs: dict[str, Any] = {"gradients": gradients * attack.draws, "bytes_saved": None}
        ratio = 2.0
        if isinstance(self.single, Purified):
            inner = getattr(self.attacked_module, "purified", self.attacked_module)
            stats = inner.stats if isinstance(inner, Purified) else None
            each = 0 if stats is None else stats.nfe_forward + stats.nfe_backward
            with forked(self.attack.seed, "costs"), torch.no_grad():
                self.single(image)
            draw = self.single.stats.nfe_forward
            costs |= {"calls_a_gradient": each, "calls_a_draw": draw}
            costs["bytes_saved"] = None if stats is None else stats.bytes_saved
            ratio = max(1.0, each / draw)
        return {**costs, "candidates": round(gradients * ratio) if self.controls else None}

    def attacked(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Any, list[float], float]:
        """Return the content of the files, what is said of it, the losses and the share of zero gradients."""
        where = output_folder(self.folder / "found")
        levels: list[Tensor] = []
        losses: list[list[float]] = []
        zeros: list[float] = []
        with progress("attack", len(images), self.run.quiet) as bar:
            for number, part in enumerate(parts(len(images), self.attack.batch)):
                tensors = self._once(f"part-{number:04d}", number, images[part], labels[part])
                levels.append(tensors["levels"])
                losses.append(tensors["losses"].tolist())
                zeros += [float(tensors["zeros"])] * len(part)
                bar.update(len(part))
        for i, content in enumerate(torch.cat(levels)):
            write_file(where / f"{i:04d}.png", png(content))
        read = [read_image(path.read_bytes()) for path in sorted(where.glob("*.png"))[: len(images)]]
        content = torch.stack([as_8_bit(each) for each in read])
        verdict = self._judged(content.to(images) / 255, labels, "found")
        # The mean over the images of each step, whose parts may differ in size.
        sizes = torch.tensor([float(len(each)) for each in levels])
        mean = (torch.tensor(losses) * sizes[:, None]).sum(0) / sizes.sum()
        return content, verdict, mean.tolist(), sum(zeros) / len(zeros)

    def _once(self, name: str, number: int, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return what the attack found on a part of the images; made once, if the run is resumed."""
        path = output_folder(self.folder / "state") / f"{name}.safetensors"
        config = {
            **self.settings,
            "images": as_8_bit(images).long().sum().item(),
            "labels": labels.tolist(),
        }
        part = finished_part(path, config, self.run.resume)
        if part is not None:
            return part[0]
        attack = replace(self.attack, seed=key(self.attack.seed, "part", number), batch=None)
        found = attack(self.attacked_module, images, labels)
        tensors = {
            "levels": as_8_bit(found.x),
            "losses": torch.tensor(found.losses),
            "zeros": torch.tensor(found.zero_gradients),
        }
        save_checkpoint(path, tensors, {"config": config})
        return tensors

    def random(self, images: Tensor, labels: Tensor, costs: dict[str, Any]) -> Any:
        """Return what is said of the best random points."""
        attack = self.attack
        found: list[Tensor] = []
        with progress("random noise", len(images), self.run.quiet) as bar:
            for number, part in enumerate(parts(len(images), attack.batch)):
                found.append(
                    random_search(
                        self.single,
                        images[part],
                        labels[part],
                        attack.ball,
                        costs["candidates"],
                        draws=attack.draws,
                        seed=key(attack.seed, "part", number),
                    )
                )
                bar.update(len(part))
        return self._judged(torch.cat(found), labels, "random")

    def smallest(self, found: Tensor, centre: Tensor, labels: Tensor, after: Verdict) -> Tensor:
        """Return the nearest image on the way to each success that most draws misclassify; what was found elsewhere."""
        where, best = output_folder(self.folder / "smallest"), found.clone()
        misled = after.majority.nonzero()[:, 0].tolist()
        with progress("smallest changes", len(misled), self.run.quiet) as bar:
            for part in parts(len(misled), self.attack.batch):
                rows = [misled[i] for i in part]

                def succeeds(images: Tensor, number: int, rows: list[int] = rows) -> Tensor:
                    return self._judged(images, labels[rows], "smallest", rows[0], number).majority

                best[rows] = smallest(succeeds, found[rows], centre[rows], self.attack.ball)
                bar.update(len(rows))
        for i in misled:
            write_file(where / f"{i:04d}.png", png(as_8_bit(best[i])))
        return best

    def _judged(self, images: Tensor, labels: Tensor, *name: str | int) -> Verdict:
        seed = key(self.attack.seed, *name)
        return judged(self.single, images, labels, draws=self.votes, seed=seed, batch=self.attack.batch)

    def report(self, result: ImageAuditResult, classifier: nn.Module, found: Tensor) -> None:
        """Write the page, result.json and images.csv."""
        purified = sampler = None
        if isinstance(self.single, Purified):
            sampler = self.single.sampler
            with torch.no_grad(), forked(self.attack.seed, "page"):
                purified = torch.cat(
                    [self.single.purify(part) for part in found.split(self.attack.batch or 8)]
                )
        write_file(self.folder / "images.csv", as_csv(result.rows()))
        page = page_of_images(result, self.attack, self.gradient, purified)
        inner = classifier.classifier if isinstance(classifier, Purified) else classifier
        kind = type(getattr(inner, "model", inner)).__name__
        page.facts["Classifier"] = str(self.run.config.get("classifier") or kind)
        page.facts["Images"] = f"{len(result.files)} given ones, {len(found)} of them attacked"
        if isinstance(self.single, Purified):
            of = steps_of(self.single.sampler)
            page.facts["Purification"] = f"t = {self.single.t:g}, {self.single.steps} steps of {of}"
        said = {
            "exact": "The loss on the classifier's logits, through every step of the purification where there is one, "
            "with respect to the image.",
            "bpda": "The loss on the classifier's logits with respect to the purified image, as if the purification "
            "were the identity. This is not the gradient of what is audited.",
            "continuous": "The loss on the classifier's logits, with the paper's adjoint ODE in place of the steps' "
            "own gradient. This is not the gradient of what is audited.",
            "sde-adjoint": "The loss on the classifier's logits, with the adjoint SDE, solved anew backwards, in place "
            "of the steps' own gradient. This is not the gradient of what is audited.",
            "blind": "The loss on the logits of the classifier without the purification. This is not the gradient of "
            "what is audited.",
        }[self.gradient]
        loss = f"loss {self.attack.loss}, mean over {self.attack.draws} draw{'s' if self.attack.draws > 1 else ''}"
        about = About(
            sampler, loss, "higher is further from the label", said, "the images found, in the folder found",
            [f'adjointdpm.tasks.load_result("{self.folder}")["result"]["images"]'],
        )  # fmt: skip
        write_report("audit_images", result, self.settings, page, about, self.run)
