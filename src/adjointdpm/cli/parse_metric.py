"""Metrics as text, for the command line: each is `[weight*]kind[:argument]`, such as `0.5*style:image.png`.

pixels, content                  distance to the image that the task compares with
pixels:FILE, content:FILE        distance to an image in a file
style:FILE                       Gram matrices of an image in a file
wasserstein:FILE                 distributions of small patches and details of an image in a file; needs no network
effect:NAME                      an effect on the image that the task compares with
chroma, background:R,G,B         colorfulness; the border's color, in [0, 1]
label:NAME, margin:NAME          a classifier's -log probability, or margin, of a label: to reach, to leave
clip-text:TEXT, clip-image:FILE  1 - cosine similarity
clip-score, pick-score[:MODEL]   rewards that read each image's prompt; higher is better: they count with a minus
hps-v2:MODEL                     the same, by a CLIPModel with the weights of HPSv2
image-reward[:MODEL]             the same, by ImageReward's weights as safetensors: a file, a folder, or a name on a hub
preference[:MODEL]               a network fitted to choices between images; by default the bundled one, for its images
aesthetic:FILE                   a head in safetensors on the embeddings of --clip_model; it reads no prompt
at-least:NUMBER:REWARD           what one of these rewards lacks to a number
MODULE:FUNCTION                  your own function of images (batch, 3, height, width) in [0, 1] to (batch,), lower is
                                 better; or your own reward of images and a list of prompts, higher is better

Everything after the first colon is the argument, plus signs and spaces included. Several texts are added up.
"""

import inspect
import math
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
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
    user_function,
)
from ..metrics.base import Weighable
from ..metrics.image_classifier import Classifier
from ..metrics.rewards import (
    Aesthetic,
    ClipScore,
    FunctionReward,
    HPSv2,
    ImageReward,
    PickScore,
    Preference,
    Reward,
    load_aesthetic,
    load_image_reward,
)
from ..samplers.base import Sampler
from ..zoo import load_clip, load_preference
from .parse_sampler import classifier_of, using

__all__ = ["Networks", "guarded_effect", "image_folder", "image_option", "metric_of"]

PICK_SCORE, PICK_PROCESSOR = "yuvalkirstain/PickScore_v1", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
IMAGE_REWARD = "RE-N-Y/ImageReward"
_TERM = re.compile(r"^\s*(?:(?P<weight>[^:*]*)\*)?\s*(?P<kind>[\w.-]+)\s*(?::(?P<rest>.*))?$", re.DOTALL)
_KINDS = (
    "pixels", "content", "style", "wasserstein", "effect", "chroma", "background", "label", "margin", "clip-text",
    "clip-image", "clip-score", "pick-score", "hps-v2", "image-reward", "aesthetic", "preference", "at-least",
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
        clip_model: a CLIP model: bundled, a folder, or a name on a hub.
        reward_device: where the networks of CLIP and of rewards are; with the images if None.
    """

    sampler: Sampler
    features: str | None = "emoji/resnet"
    layer: tuple[int, ...] = ()
    classifier: str | None = "emoji/resnet"
    clip_model: str = "openai/clip-vit-base-patch32"
    reward_device: torch.device | None = None
    _loaded: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def device(self) -> torch.device:
        """Where the images are."""
        return self.sampler.noise(1).device

    @property
    def rewards_at(self) -> torch.device:
        """Where the networks of CLIP and of rewards are."""
        if self.reward_device is None:
            return self.device
        return self._once("reward_device", lambda: self.reward_device)

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

    def clip(self, name: str | None = None, processor: str | None = None) -> tuple[Any, Any, Any]:
        """Return a CLIP model, its tokenizer and its preprocessing.

        Args:
            name: a bundled one, a folder, or a name on a hub; that of `clip_model` if None.
            processor: see `load_clip`.
        """
        source = self.clip_model if name is None else name

        def load() -> tuple[Any, Any, Any]:
            with using(f"the CLIP model {source!r}"):
                model, tokenizer, preprocess = load_clip(source, processor=processor)
                return model.to(self.rewards_at), tokenizer, preprocess

        return self._once("clip_model" if name is None else f"clip {name}", load)

    def preference(self, name: str) -> Preference:
        """Return a preference by its name."""
        with using(f"the preference {name!r}"):
            return self._once(f"preference {name}", lambda: load_preference(name, device=self.rewards_at))

    def image_reward(self, name: str) -> ImageReward:
        """Return ImageReward by the place of its weights."""
        with using(f"the ImageReward of {name!r}"):
            return self._once(
                f"image-reward {name}", lambda: load_image_reward(name, device=self.rewards_at)
            )

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


@dataclass(frozen=True, eq=False)
class OwnReward:
    """A reward of one's own: what it raises, and what it does to the process, becomes an error that names it.

    Args:
        name: as it was given.
        function: images (batch, 3, height, width) in [0, 1] and as many prompts to (batch,).
    """

    name: str
    function: Callable[[Tensor, list[str]], Tensor]

    @property
    def __name__(self) -> str:
        return self.name

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        with using(self.name):
            return self.function(images, prompts)


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
            return _own(name, user_function(name))
    alone = ("pixels", "content", "chroma", "clip-score", "pick-score", "image-reward", "preference")
    if not rest and kind not in alone:
        raise InputError(f"the metric {kind} needs something after a colon; see adjointdpm tune --help")
    if rest and kind in ("chroma", "clip-score"):
        raise InputError(f"the metric {kind} takes nothing after it, but {rest!r} was given")
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
        "clip-score": lambda: ClipScore(*networks.clip()),
        "pick-score": lambda: PickScore(
            *networks.clip(rest or PICK_SCORE, None if rest else PICK_PROCESSOR)
        ),
        "hps-v2": lambda: HPSv2(*networks.clip(rest)[:2]),
        "image-reward": lambda: networks.image_reward(rest or IMAGE_REWARD),
        "aesthetic": lambda: _aesthetic(rest, networks),
        "preference": lambda: networks.preference(rest or "emoji/preference"),
        "at-least": lambda: _at_least(rest, networks),
    }
    return makes[kind]()


def _own(name: str, found: Any) -> Any:
    """Return a metric of one's own: a value as it is, a function of images, or a reward of images and prompts."""
    if isinstance(found, Weighable):
        return found
    with suppress(TypeError, ValueError):  # some callables have no signature
        needed = [
            each
            for each in inspect.signature(found).parameters.values()
            if each.default is each.empty
            and each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)
        ]
        if len(needed) == 2:
            return FunctionReward(OwnReward(name, found))
    return Own(name, found)


def _aesthetic(path: str, networks: Networks) -> Aesthetic:
    model, _, preprocess = networks.clip()
    head, width = load_aesthetic(path).to(networks.rewards_at), int(model.config.projection_dim)
    first = next(head.parameters())
    if first.shape[1] != width:
        raise InputError(
            f"the aesthetic head {path} is for embeddings of {first.shape[1]} numbers, but those of "
            f"{networks.clip_model!r} have {width}; give the --clip_model that it was trained on"
        )
    return Aesthetic(model, head, preprocess)


def _at_least(text: str, networks: Networks) -> Any:
    number, _, reward = text.partition(":")
    _, found = _weighted(reward, networks) if reward else (1.0, None)
    try:
        threshold = float(number)
    except ValueError:
        threshold = math.nan
    if not isinstance(found, Reward) or not math.isfinite(threshold) or "*" in reward.partition(":")[0]:
        raise InputError(
            f"write at-least:NUMBER:REWARD, such as at-least:30:clip-score, but not at-least:{text}; a weight comes "
            "before at-least"
        )
    return found.at_least(threshold)


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
