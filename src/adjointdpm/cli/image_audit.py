"""`adjointdpm audit --images`: a classifier, behind a defence or plain, on a folder of labelled images.

--defense none
--defense purify[:t=0.1,steps=20,votes=5,eta=1]     eta above 0 for the SDE (EulerMaruyama); else --solver, of which
                                                    pipeline is diffusers' own image-to-image pipeline
--eps 8/255                                         a number or a fraction
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal

from torch import Tensor, nn

from .._types import InputError, Range
from ..attacks import APGD, PGD, Attack, ImageBall
from ..attacks.expectation import is_random
from ..files.labelled_images import labelled_files, read_images
from ..metrics.image_classifier import Classifier
from ..samplers.base import Sampler
from ..samplers.flow_sampler import FlowSampler
from ..samplers.purified import Purified
from ..solvers import EulerMaruyama
from ..tasks import AuditSettings
from ..tasks.audit import audit_images
from ..tasks.evaluation import labels_of
from .flags import Given
from .options import ModelOptions, OutputOptions, announce, in_one_process
from .parse_sampler import classifier_of, device_of

__all__ = ["ImageOptions", "run_on_images", "starts_of"]


@dataclass(frozen=True)
class ImageOptions:
    """Which images are audited, and how.

    Args:
        images: Folder of images, in a folder for each label or beside a labels.csv; audits these images instead of
            images of prompts, or with --start images starts at their noise.
        labels: Csv with the columns file_name and label, for images that lie in no folders of labels.
        resize: Resize images of another size than is needed.
        defense: What stands before the classifier: none, or purify:t=0.1,steps=20,votes=5,eta=1 (noise to t, denoise in
            so many steps, vote over so many; eta above 0 for the SDE).
        attack: How the attack steps: apgd, or pgd with --learning_rate and --momentum.
        eps: Radius of the ball around each image, such as 8/255; by default 8/255 for linf, and 0.5 for l2.
        loss: What the attack raises: margin, ce (cross-entropy) or dlr (difference of logits ratio).
        draws: Number of a randomized classifier's draws, over which each step takes the mean; by default 8, and 1 where
            the classifier is not randomized.
        restarts: Number of runs of the attack.
        targets: Number of wrong classes, the likeliest first, towards each of which a run leads; 0 leads away from the
            label.
        gradient: Gradient that the attack follows: exact, or, to see what a wrong one hides, bpda, continuous,
            sde-adjoint (of --defense purify:eta=1) or blind.
    """

    images: Path | None = None
    labels: Path | None = None
    resize: bool = False
    defense: str = "none"
    attack: Literal["apgd", "pgd"] = "apgd"
    eps: str | None = None
    loss: Literal["margin", "ce", "dlr"] = "margin"
    draws: Annotated[int | None, Range(1, 10_000)] = None
    restarts: Annotated[int, Range(1, 1000)] = 1
    targets: Annotated[int, Range(0, 1000)] = 0
    gradient: Literal["exact", "bpda", "continuous", "sde-adjoint", "blind"] = "exact"

    def check_starts(self, given: Given, others: Collection[str]) -> None:
        """Refuse flags that an audit that starts at the noise of these images would ignore.

        Args:
            given: What was given to the command.
            others: Names of the flags that only an audit that starts at random noise reads.

        Raises:
            InputError: One of them was typed, or there are no images.
        """
        if self.images is None:
            raise InputError("--start images needs a folder of labelled images: --images FOLDER")
        own = [each.name for each in fields(self) if each.name not in ("images", "labels", "resize")]
        given.refuse_unused([*own, *others], "with --start images")

    def check(self, given: Given, others: Collection[str]) -> None:
        """Refuse flags that this kind of audit would ignore.

        Args:
            given: What was given to the command.
            others: Names of the flags that only an audit of prompts reads.

        Raises:
            InputError: One of them was typed.
        """
        if self.images is None:
            own = [each.name for each in fields(self) if each.name != "images"]
            given.refuse_unused(own, "without --images")
            return
        given.refuse_unused(others, "with --images")
        if self.attack == "apgd":
            given.refuse_unused(
                ("learning_rate", "momentum"), "with --attack apgd, which has no step length"
            )


def starts_of(
    options: ImageOptions, sampler: Sampler, classifier: Classifier, prompts: list[str], labels: list[str]
) -> tuple[list[str], list[str], Tensor]:
    """Return the prompt and the label of each image of a folder, and the images.

    Raises:
        InputError: An image or a label cannot be used, or a label has no prompt.
    """
    assert options.images is not None
    named = labelled_files(options.images, options.labels)
    numbers = [_label(classifier, path, label) for path, label in named]
    of_prompts = labels_of(classifier, prompts, labels or None)
    known = dict(zip(of_prompts, prompts, strict=True))
    missing = sorted({classifier.labels[i] for i in numbers if i not in known})
    if missing:
        raise InputError(
            f"there are images of {', '.join(missing)}, but no --prompt with that label, from which the sampler would "
            "make them; give one for each label"
        )
    size = (sampler.image_shape[1], sampler.image_shape[2])
    images = read_images([path for path, _ in named], size, options.resize).to(sampler.noise(1).device)
    return [known[i] for i in numbers], [classifier.labels[i] for i in numbers], images


def run_on_images(
    given: Given,
    options: ImageOptions,
    classifier: str,
    model: ModelOptions,
    settings: AuditSettings,
    output: OutputOptions,
) -> None:
    """Audit a classifier on images from files.

    Raises:
        InputError: A flag, an image or a label cannot be used.
    """
    in_one_process("audit --images")
    assert options.images is not None
    eps = _radius(options.eps, settings.ball.norm)
    ball = ImageBall(eps, settings.ball.norm)
    defense = _defense(options.defense)
    if not defense:
        unused = [each.name for each in fields(model) if each.name != "device"]
        given.refuse_unused(unused, "without --defense purify, as the images come from files")
    named = labelled_files(options.images, options.labels)
    folder, run = output.start(given, ())
    if defense:
        sampler = _sampler(model, defense)
        place, size = sampler.noise(1).device, (sampler.image_shape[1], sampler.image_shape[2])
    else:
        sampler, place, size = None, device_of(model.device), None
    images = read_images([path for path, _ in named], size, options.resize).to(place)
    audited: Classifier = classifier_of(classifier, place, tuple(images.shape[1:]))
    labels = [_label(audited, path, label) for path, label in named]
    whole: nn.Module = audited
    votes = 1
    if sampler is not None:
        steps, votes = defense.get("steps"), int(defense.get("votes", 5))
        whole = Purified(
            sampler, audited, t=defense.get("t", 0.1), steps=None if steps is None else int(steps)
        )
    draws = options.draws
    if draws is None:
        draws = 8 if is_random(whole, images[:2]) else 1
    method = APGD() if options.attack == "apgd" else PGD(settings.learning_rate, settings.momentum)
    found = audit_images(
        whole,
        images,
        labels,
        output=folder,
        attack=Attack(
            ball=ball,
            method=method,
            loss=options.loss,
            steps=settings.max_train_steps,
            draws=draws,
            restarts=options.restarts,
            targets=options.targets,
            batch=settings.train_batch_size,
            seed=settings.seed,
        ),
        gradient=options.gradient,
        votes=votes,
        controls=settings.controls,
        files=[str(path.relative_to(options.images)) for path, _ in named],
        run=run,
    )
    name = "majority"
    announce(f"right before the attack: {found.clean[name]}", f"right after it: {found.robust[name]}")
    if found.randomized:
        announce(f"right after it, single draw: {found.robust['single']}")
        announce(f"right after it, every one of {votes} draws: {found.robust['worst']}")
    if found.random is not None:
        announce(f"right after random noise: {found.left(found.random)[name]}")
    if found.zero_gradients:
        announce(f"gradients that were exactly zero: {100 * found.zero_gradients:.1f} %")
    announce(f"page: {(folder / 'index.html').resolve()}")


def _radius(text: str | None, norm: str) -> float:
    """Return the radius that a text stands for.

    Raises:
        InputError: It is no number above 0, or cannot be one of this norm.
    """
    if text is None:
        return 8 / 255 if norm == "linf" else 0.5
    try:
        radius = float(Fraction(text.replace(" ", "")))
    except (ValueError, ZeroDivisionError, OverflowError):
        radius = 0.0
    if not 0 < radius < 1e6:
        raise InputError(f"--eps is a number above 0 or a fraction, such as 8/255, but is {text!r}")
    if norm == "linf" and radius > 1:
        raise InputError(
            f"--eps {text} is more than the whole range [0, 1] of images; give {text}/255 for levels"
        )
    if norm == "l2" and radius < 0.05:
        raise InputError(
            f"--eps {text} with --norm l2 is less than one level in most numbers of an image; give --norm linf, or a "
            "larger radius, such as 0.5"
        )
    return radius


def _defense(text: str) -> Mapping[str, float]:
    """Return the settings of a purification; none for no defence.

    Raises:
        InputError: It cannot be read, or a setting is out of range.
    """
    name, _, rest = text.partition(":")
    if text == "none":
        return {}
    form = "write none, purify, or purify:t=0.1,steps=20,votes=5,eta=1"
    if name != "purify":
        raise InputError(f"there is no defense {text!r}; {form}")
    found: dict[str, float] = {"t": 0.1}
    for part in filter(None, rest.split(",")):
        key, _, value = part.partition("=")
        try:
            found[key.strip()] = float(value)
        except ValueError as error:
            raise InputError(f"--defense: {part!r} is no setting with a number; {form}") from error
    ranges = {
        "t": Range(0, 1, True),
        "steps": Range(1, 10_000),
        "votes": Range(1, 1000),
        "eta": Range(0, 1),
    }
    for key, value in found.items():
        if key not in ranges:
            raise InputError(f"--defense: purify has no setting {key!r}; {form}")
        ranges[key](f"--defense: {key}", value)
        if key in ("steps", "votes") and value != int(value):
            raise InputError(f"--defense: {key} is a whole number, but is {value:g}")
    return found


def _sampler(model: ModelOptions, defense: Mapping[str, float]) -> Sampler:
    """Return what denoises.

    Raises:
        InputError: eta is set, and the pipeline's own scheduler steps.
    """
    # An empty prompt guided away from an empty one is itself, at twice the cost.
    plain: Any = {} if model.guidance_scale is not None else {"guidance_scale": 1.0}
    sampler, eta = replace(model, **plain).sampler(), defense.get("eta", 0.0)
    if isinstance(sampler, FlowSampler):
        return sampler.replace(solver=EulerMaruyama(eta)) if eta else sampler
    if eta:
        raise InputError(
            "--defense: eta is of this library's own steps, and --solver pipeline takes those of the pipeline's "
            "scheduler; leave eta out, or choose another --solver"
        )
    return sampler


def _label(classifier: Classifier, path: Path, label: str) -> int:
    """Return the number of a label.

    Raises:
        InputError: The classifier does not know it.
    """
    try:
        return classifier.index(label)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
