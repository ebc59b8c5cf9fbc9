"""Metrics as text, for the command line: `0.5*style:picture.png + 0.1*content`.

pixels, content                  distance to the picture that the task compares with
pixels:FILE, content:FILE        ... to a picture
style:FILE                       Gram matrices of one picture
effect:NAME                      an effect on the picture that the task compares with
chroma, background:R,G,B         colourfulness; the border's colour, in [0, 1]
label:NAME, margin:NAME          a classifier's -log probability, or margin, of a label: to reach, to leave
clip-text:TEXT, clip-image:FILE  1 - cosine similarity
MODULE:FUNCTION                  your own, of pictures (batch, 3, height, width) in [0, 1] to (batch,)
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ._types import InputError
from .metrics import (
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
    Style,
    Sum,
    effect,
    load_clip,
    user_function,
)
from .pictures import image_file
from .sampler import Sampler
from .zoo import Classifier, load_classifier

__all__ = ["Networks", "metric_of", "picture_file"]

_TERM = re.compile(
    r"^\s*(?:(?P<weight>[+-]?\s*[0-9.]+(?:e-?[0-9]+)?)\s*\*)?\s*(?P<kind>[\w.-]+)(?::(?P<rest>.*))?$"
)
_KINDS = (
    "pixels", "content", "style", "effect", "chroma", "background", "label", "margin", "clip-text", "clip-image",
)  # fmt: skip


def picture_file(path: str, size: tuple[int, ...] | None = None) -> Tensor:
    """An image file as (3, height, width) in [0, 1], as `pictures.image_file` reads it.

    Raises:
        InputError: it is missing, no image, or not of the size that is needed.
    """
    picture = image_file(path)
    if size is not None and tuple(picture.shape[1:]) != tuple(size):
        h, w = picture.shape[1:]
        raise InputError(
            f"{path} is {w} x {h} pixels, but {size[1]} x {size[0]} are compared with; resize it"
        )
    return picture


@dataclass(frozen=True)
class Networks:
    """Which networks a metric's text may need, by name; loaded when it does.

    Args:
        sampler: for the size and place of pictures.
        features: a classifier whose hidden states style and content are of.
        layers: which of them.
        classifier: for labels.
        clip: a CLIP model's folder or name.
        device: where they run.
    """

    sampler: Sampler
    features: str = "emoji/resnet"
    layers: tuple[int, ...] = (0, 1, 2)
    classifier: str = "emoji/resnet"
    clip: str = "openai/clip-vit-base-patch32"
    device: str = "cpu"

    def hidden(self) -> HiddenStates:
        """The features."""
        net: Classifier = load_classifier(self.features, device=self.device)
        return HiddenStates(net.model, net.normalised, self.layers)

    def picture(self, path: str, same: bool = False) -> Tensor:
        """A picture where the networks are."""
        return picture_file(path, self.sampler.image_shape[1:] if same else None).to(self.device)


def metric_of(text: str, networks: Networks) -> Any:
    """The metric that a text stands for; see the head of this module.

    Raises:
        InputError: a part cannot be read, or what it names is not there.
    """
    starts = "|".join(_KINDS)
    parts = re.split(rf"\+(?=\s*(?:[0-9.]+(?:e-?[0-9]+)?\s*\*|(?:{starts})\b))", text)
    terms = []
    for part in parts:
        found = _TERM.match(part.strip())
        if found is None:
            raise InputError(
                f"the metric {part.strip()!r} cannot be read; write {', '.join(_KINDS)} or module:function"
            )
        try:
            weight = float((found["weight"] or "1").replace(" ", ""))
        except ValueError as error:
            raise InputError(f"the weight {found['weight']!r} in {text!r} is no number") from error
        terms.append((weight, _single(found["kind"], (found["rest"] or "").strip(), networks)))
    return terms[0][1] if len(terms) == 1 and terms[0][0] == 1 else Sum(tuple(terms))


def _single(kind: str, rest: str, networks: Networks) -> Any:
    if kind not in _KINDS:
        if not rest:
            raise InputError(
                f"there is no metric {kind!r}; there are {', '.join(_KINDS)}, and module:function"
            )
        return user_function(f"{kind}:{rest}")
    if not rest and kind not in ("pixels", "content", "chroma"):
        raise InputError(f"the metric {kind} needs something after a colon; see adjointdpm tune --help")
    makes: dict[str, Callable[[], Any]] = {
        "pixels": lambda: PixelDistance(networks.picture(rest, same=True)) if rest else Pixels(),
        "content": lambda: (
            ContentDistance(networks.hidden(), networks.picture(rest, same=True)[None])
            if rest
            else Content(networks.hidden())
        ),
        "style": lambda: Style(networks.hidden(), networks.picture(rest)),
        "effect": lambda: EffectDistance(effect(rest)),
        "chroma": Chroma,
        "background": lambda: BackgroundColour(_colour(rest)),
        "label": lambda: _labelled(LogProbability, rest, networks),
        "margin": lambda: _labelled(Margin, rest, networks),
        "clip-text": lambda: _clip(rest, None, networks),
        "clip-image": lambda: _clip("", networks.picture(rest), networks),
    }
    return makes[kind]()


def _labelled(kind: Any, label: str, networks: Networks) -> Any:
    classifier = load_classifier(networks.classifier, device=networks.device)
    return kind(classifier, classifier.index(label))


def _clip(text: str, picture: Tensor | None, networks: Networks) -> ClipDistance:
    model, tokenizer, preprocess = load_clip(networks.clip)
    model.to(torch.device(networks.device))
    if picture is not None:
        return ClipDistance.of_picture(model, picture, preprocess)
    return ClipDistance.of_text(model, tokenizer, text, preprocess)


def _colour(text: str) -> tuple[float, float, float]:
    try:
        red, green, blue = (float(each) for each in text.split(","))
    except ValueError as error:
        raise InputError(
            f"a colour is three numbers in [0, 1], such as 0.2,0.4,0.9, but is {text!r}"
        ) from error
    return red, green, blue
