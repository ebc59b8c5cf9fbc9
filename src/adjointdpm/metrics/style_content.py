"""Style and content in the features of any network.

    G_l(x) = F_l F_l^T / n_l                               F_l (channels, n_l): layer l's features of x
    style(x)   = mean_l |G_l(x) - G_l(r)|^2 / |G_l(r)|^2     r the reference image
    content(x) = mean_l |F_l(x) - F_l(y)|^2 / |F_l(y)|^2     y the image whose content is to stay

Each layer is divided by its reference's own size, so that no layer drowns the others. Gatys, Ecker and
Bethge, 2015, arXiv 1508.06576, have absolute weights instead.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .._types import InputError
from .base import AnyImages, Paired, Values, Weighable

__all__ = ["Content", "ContentDistance", "Features", "HiddenStates", "Layers", "Style", "gram"]

Features = Callable[[Tensor], Sequence[Tensor]]
"""Images to feature maps, (batch, channels, height, width) or (batch, tokens, channels) each."""


class HiddenStates(nn.Module):
    """The hidden states of a transformers model: a classifier's, a backbone's, a vision tower's.

    Args:
        model: called as model(pixels, output_hidden_states=True).
        preprocess: images in [0, 1] to what it takes.
        layers: which states; negative numbers count from the last; all if None.

    Raises:
        InputError: when called, if there is no such state.
    """

    def __init__(
        self, model: Any, preprocess: Callable[[Tensor], Tensor], layers: Sequence[int] | None = (0, 1, 2)
    ) -> None:
        super().__init__()
        self.model, self.preprocess = model, preprocess
        self.layers = None if layers is None else tuple(layers)

    def forward(self, images: Tensor) -> list[Tensor]:
        states = self.model(self.preprocess(images), output_hidden_states=True).hidden_states
        if self.layers is None:
            return list(states)
        wrong = [i for i in self.layers if not -len(states) <= i < len(states)]
        if wrong:
            raise InputError(f"the model has {len(states)} hidden states, numbered from 0, but not {wrong}")
        return [states[i] for i in self.layers]


class Layers(nn.Module):
    """What named modules inside any network put out.

    Args:
        network: called with preprocessed images; its own result is not looked at.
        names: of modules, as in `network.named_modules()`.
        preprocess: images in [0, 1] to what it takes; None for nothing.

    Raises:
        InputError: there is no such module; or, when called, it did not run or put out no tensor.
    """

    def __init__(
        self, network: nn.Module, names: Sequence[str], preprocess: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        super().__init__()
        known = dict(network.named_modules())
        wrong = [name for name in names if name not in known]
        if wrong or not names:
            raise InputError(
                f"the network has no module {wrong or 'named'}; it has {', '.join(known)[:400]}"
            )
        self.network, self.names, self.preprocess = network, tuple(names), preprocess

    def forward(self, images: Tensor) -> list[Tensor]:
        found: dict[str, Any] = {}

        def keep(name: str) -> Any:
            return lambda module, args, out: found.__setitem__(name, out)

        modules = dict(self.network.named_modules())
        hooks = [modules[name].register_forward_hook(keep(name)) for name in self.names]
        try:
            self.network(images if self.preprocess is None else self.preprocess(images))
        finally:
            for hook in hooks:
                hook.remove()
        wrong = [name for name in self.names if not isinstance(found.get(name), Tensor)]
        if wrong:
            raise InputError(f"the modules {', '.join(wrong)} put out no tensor; name others")
        return [found[name] for name in self.names]


def gram(features: Tensor) -> Tensor:
    """F F^T / n of each image's features: (batch, channels, channels)."""
    flat = features.flatten(2) if features.ndim == 4 else features.transpose(1, 2)
    return flat @ flat.transpose(1, 2) / flat.shape[2]


@dataclass(frozen=True, eq=False)
class Style(Weighable):
    """Distance of Gram matrices from those of one reference image; 0 at the reference, 1 at no features.

    Places do not matter to it, so it says nothing of content: add `Content()` to keep that.

    Args:
        features: which network's.
        reference: (3, height, width) in [0, 1], of any size.

    Raises:
        InputError: a reference of another shape, or one without features.
    """

    features: Features
    reference: Tensor

    def __post_init__(self) -> None:
        if self.reference.ndim != 3 or len(self.reference) != 3:
            raise InputError(f"a reference is (3, height, width), but is {tuple(self.reference.shape)}")
        object.__setattr__(self, "_known", {})

    def _grams(self, like: Tensor) -> list[Tensor]:
        """Of the reference, made once a dtype and device, without a graph."""
        known: dict[Any, list[Tensor]] = self.__dict__["_known"]
        place = (like.dtype, like.device)
        if place not in known:
            with torch.no_grad():
                known[place] = [gram(f) for f in self.features(self.reference.to(like)[None])]
            if not all(bool(g.any()) for g in known[place]):
                raise InputError("the reference image has no features in some layer; choose another layer")
        return known[place]

    def __call__(self, images: AnyImages) -> Values:
        return _relative([gram(f) for f in self.features(images)], self._grams(images))


@dataclass(frozen=True, eq=False)
class ContentDistance(Weighable):
    """Distance of features from those of target images, place by place.

    Args:
        features: which network's.
        target: (batch, 3, height, width), or one of them for all.
    """

    features: Features
    target: Tensor

    def __call__(self, images: AnyImages) -> Values:
        return _relative(self.features(images), self.features(self.target))


@dataclass(frozen=True, eq=False)
class Content(Paired):
    """`ContentDistance` to the image that a task compares with: the same noise, before.

    Args:
        features: which network's.
    """

    features: Features

    def beside(self, others: AnyImages) -> ContentDistance:
        return ContentDistance(self.features, others)


def _relative(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
    parts = []
    for ours, theirs in zip(found, wanted, strict=True):
        away = (ours - theirs).flatten(1).square().sum(1)
        parts.append(away / theirs.flatten(1).square().sum(1).clamp(min=1e-12))
    return torch.stack(parts).mean(0)
