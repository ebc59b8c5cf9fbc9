"""Metrics as text, for the command line: each is `[weight*]kind[:argument]`, such as `0.5*style:image.png`.

pixels, content                  distance to the image that the task compares with
pixels:FILE, content:FILE        distance to an image in a file
style:FILE                       Gram matrices of an image in a file
wasserstein:FILE                 distributions of small patches and details of an image in a file; needs no network
effect:NAME                      an effect on the image that the task compares with
chroma, background:R,G,B         colorfulness; the border's color, in [0, 1]
label:NAME, margin:NAME          a classifier's -log probability, or margin, of a label: to reach, to leave
clip-text:TEXT, clip-image:FILE  1 - cosine similarity
MODULE:FUNCTION                  your own function of images (batch, 3, height, width) in [0, 1] to (batch,)

Everything after the first colon is the argument, plus signs and spaces included. Several texts are added up.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._types import InputError
from ..files.images import image_file
from ..metrics import (
    BackgroundColour,
    Chroma,
    ClipDistance,
    Content,
    ContentDistance,
    EffectDistance,
    HiddenStates,
    LogProbability,
    Margin,
    PixelDistance,
    Pixels,
    SlicedWasserstein,
    Style,
    Sum,
    effect,
    load_clip,
    user_function,
)
from ..metrics.base import Weighable
from ..metrics.image_classifier import Classifier
from ..samplers.base import Sampler
from .parse_sampler import classifier_of, using

__all__ = ["Networks", "guarded_effect", "image_folder", "image_option", "metric_of"]

_TERM = re.compile(r"^\s*(?:(?P<weight>[^:*]*)\*)?\s*(?P<kind>[\w.-]+)\s*(?::(?P<rest>.*))?$", re.DOTALL)
_KINDS = (
    "pixels", "content", "style", "wasserstein", "effect", "chroma", "background", "label", "margin", "clip-text",
    "clip-image",
)  # fmt: skip


def image_option(path: str, size: tuple[int, ...] | None = None) -> Tensor:
    """Return an image file as (3, height, width) in [0, 1], as `images.image_file` reads it.

    Raises:
        InputError: it is missing, no image, or not of the size that is needed.
    """
    image = image_file(path)
    if size is not None and tuple(image.shape[1:]) != tuple(size):
        h, w = image.shape[1:]
        raise InputError(
            f"{path} is {w} x {h} pixels, but {size[1]} x {size[0]} are compared with; resize it"
        )
    return image


def image_folder(path: str) -> list[Path]:
    """Return the files of a folder in the order of their names, without hidden ones.

    Raises:
        InputError: it is no folder that can be read.
    """
    try:
        return sorted(each for each in Path(path).iterdir() if each.is_file() and each.name[0] != ".")
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is no folder of images that can be read: {error}") from error


@dataclass(frozen=True)
class Networks:
    """Which networks a metric's text may need, by name; loaded when it does.

    Args:
        sampler: for the size and place of images.
        features: a classifier whose hidden states style and content are of; None for none.
        layer: indices of the hidden states; the first three if there are none.
        classifier: for labels; None for none.
        clip_model: a CLIP model's folder or name.
    """

    sampler: Sampler
    features: str | None = "emoji/resnet"
    layer: tuple[int, ...] = ()
    classifier: str | None = "emoji/resnet"
    clip_model: str = "openai/clip-vit-base-patch32"
    _loaded: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def device(self) -> torch.device:
        """Where the images are."""
        return self.sampler.noise(1).device

    @property
    def used(self) -> set[str]:
        """The fields that some metric has needed so far."""
        return set(self._loaded)

    def hidden(self) -> HiddenStates:
        """Return the features, tried on a gray image."""

        def load() -> HiddenStates:
            net, layers = self._classifier_of("features", self.features), self.layer or (0, 1, 2)
            found = HiddenStates(net.model, net.normalized, layers)
            with using(f"the features of {self.features!r}, hidden states {layers}"), torch.no_grad():
                found(torch.full((1, *self.sampler.image_shape), 0.5, device=self.device))
            return found

        found = self._once("features", load)
        self._once("layer", lambda: self.layer)
        return found

    def labelled(self) -> Classifier:
        """Return the classifier for labels."""
        return self._once("classifier", lambda: self._classifier_of("classifier", self.classifier))

    def clip(self) -> tuple[Any, Any, Any]:
        """Return the CLIP model, its tokenizer and its preprocessing."""

        def load() -> tuple[Any, Any, Any]:
            with using(f"the CLIP model {self.clip_model!r}"):
                model, tokenizer, preprocess = load_clip(self.clip_model)
                return model.to(self.device), tokenizer, preprocess

        return self._once("clip_model", load)

    def image(self, path: str, same: bool = False) -> Tensor:
        """Return an image where the networks are."""
        return image_option(path, self.sampler.image_shape[1:] if same else None).to(self.device)

    def _classifier_of(self, what: str, name: str | None) -> Classifier:
        if name is None:
            raise InputError(
                f"this metric needs a classifier of your own, since the bundled ones know the bundled model's "
                f"images alone; give --{what}"
            )
        return classifier_of(name, self.device, self.sampler.image_shape)

    def _once(self, name: str, make: Callable[[], Any]) -> Any:
        if name not in self._loaded:
            self._loaded[name] = make()
        return self._loaded[name]


@dataclass(frozen=True, eq=False)
class Own(Weighable):
    """A function of one's own: what it raises, and what it does to the process, becomes an error that names it.

    Args:
        name: as it was given.
        function: images (batch, 3, height, width) in [0, 1] to (batch,).
    """

    name: str
    function: Callable[[Tensor], Tensor]

    def __call__(self, images: Tensor) -> Tensor:
        with using(self.name):
            return self.function(images)


def guarded_effect(name: str) -> Callable[[Tensor], Tensor]:
    """Return an effect by its name; one of kornia's that does not take an image alone is an error that names it."""
    with using(f"the effect {name}"):
        found = effect(name)
    return Own(name, found) if name.startswith("kornia:") else found


def metric_of(texts: Sequence[str], networks: Networks) -> Any:
    """Return the sum of the metrics that some texts stand for, one text each; see the head of this module.

    Raises:
        InputError: A text cannot be read, or what it names is not there.
    """
    terms = [_weighted(each, networks) for each in texts]
    return terms[0][1] if len(terms) == 1 and terms[0][0] == 1 else Sum(tuple(terms))


def _weighted(text: str, networks: Networks) -> tuple[float, Any]:
    """Return a weight, and the metric it belongs to.

    Raises:
        InputError: the text cannot be read.
    """
    found = _TERM.match(text.strip())
    if found is None:
        raise InputError(
            f"the metric {text.strip()!r} cannot be read; write {', '.join(_KINDS)} or module:function, with "
            "a weight and * before it if need be, and give each term of a sum in a --metric of its own"
        )
    return _weight(found["weight"]), _single(found["kind"], (found["rest"] or "").strip(), networks)


def _weight(text: str | None) -> float:
    try:
        weight = float((text or "1").replace(" ", ""))
    except ValueError:
        weight = math.nan
    if not math.isfinite(weight) or weight == 0:
        raise InputError(f"the weight of a metric is a finite number other than 0, but is {text!r}")
    return weight


def _single(kind: str, rest: str, networks: Networks) -> Any:
    if kind not in _KINDS:
        if not rest:
            raise InputError(
                f"there is no metric {kind!r}; there are {', '.join(_KINDS)}, and module:function"
            )
        name = f"{kind}:{rest}"
        with using(f"the metric {name}"):
            return Own(name, user_function(name))
    if not rest and kind not in ("pixels", "content", "chroma"):
        raise InputError(f"the metric {kind} needs something after a colon; see adjointdpm tune --help")
    if rest and kind == "chroma":
        raise InputError(f"the metric chroma takes nothing after it, but {rest!r} was given")
    makes: dict[str, Callable[[], Any]] = {
        "pixels": lambda: PixelDistance(networks.image(rest, same=True)) if rest else Pixels(),
        "content": lambda: (
            ContentDistance(networks.hidden(), networks.image(rest, same=True)[None])
            if rest
            else Content(networks.hidden())
        ),
        "style": lambda: Style(networks.hidden(), networks.image(rest)),
        "wasserstein": lambda: SlicedWasserstein(networks.image(rest)),
        "effect": lambda: EffectDistance(guarded_effect(rest)),
        "chroma": Chroma,
        "background": lambda: BackgroundColour(_colour(rest)),
        "label": lambda: _labelled(LogProbability, rest, networks),
        "margin": lambda: _labelled(Margin, rest, networks),
        "clip-text": lambda: _clip(rest, None, networks),
        "clip-image": lambda: _clip("", networks.image(rest), networks),
    }
    return makes[kind]()


def _labelled(kind: Any, label: str, networks: Networks) -> Any:
    classifier = networks.labelled()
    return kind(classifier, classifier.index(label))


def _clip(text: str, image: Tensor | None, networks: Networks) -> ClipDistance:
    model, tokenizer, preprocess = networks.clip()
    with using(f"the CLIP model {networks.clip_model!r}"):
        if image is not None:
            return ClipDistance.of_image(model, image, preprocess)
        return ClipDistance.of_text(model, tokenizer, text, preprocess)


def _colour(text: str) -> tuple[float, float, float]:
    try:
        red, green, blue = (float(each) for each in text.split(","))
    except ValueError as error:
        raise InputError(
            f"a colour is three numbers in [0, 1], such as 0.2,0.4,0.9, but is {text!r}"
        ) from error
    return red, green, blue
