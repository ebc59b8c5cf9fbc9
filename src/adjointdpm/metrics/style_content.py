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
    """Hidden states of a transformers model (a classifier, a backbone or a vision tower) as features.

    Use it for `Style` and `Content`: early states for style, later ones for content. For a model that returns no hidden
    states use `Layers`.

    Args:
        model: the model; it is called as model(pixels, output_hidden_states=True).
        preprocess: a function from images in [0, 1] to the model's input.
        layers: numbers of the states; negative numbers count from the last. All states if None.

    Raises:
        InputError: when called, if there is no such state.

    Examples:
        >>> import torch
        >>> import adjointdpm as adp
        >>> judge = adp.load_classifier("emoji/judge")
        >>> features = adp.metrics.HiddenStates(judge.model, judge.preprocess, layers=(0, 1))
        >>> len(features(torch.zeros(1, 3, 64, 64)))
        2
    """

    def __init__(
        self, model: Any, preprocess: Callable[[Tensor], Tensor], layers: Sequence[int] | None = (0, 1, 2)
    ) -> None:
        super().__init__()
        self.model: Any = model
        self.preprocess: Callable[[Tensor], Tensor] = preprocess
        self.layers: tuple[int, ...] | None = None if layers is None else tuple(layers)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Compute the chosen hidden states.

        Args:
            images: (batch, channels, height, width), in [0, 1].

        Returns:
            one tensor for each layer, (batch, channels, height', width') or (batch, tokens, channels).

        Raises:
            InputError: the model has no such state.
        """
        states = self.model(self.preprocess(images), output_hidden_states=True).hidden_states
        if self.layers is None:
            return list(states)
        wrong = [i for i in self.layers if not -len(states) <= i < len(states)]
        if wrong:
            raise InputError(f"the model has {len(states)} hidden states, numbered from 0, but not {wrong}")
        return [states[i] for i in self.layers]


class Layers(nn.Module):
    """Outputs of named modules inside any network as features.

    Args:
        network: the network; it is called with preprocessed images, and its own result is ignored.
        names: names of modules, as in `network.named_modules()`; at least one.
        preprocess: a function from images in [0, 1] to the network's input; None for the identity.

    Raises:
        InputError: no name is given, or there is no such module; when called, if a module did not run or its output
            is no tensor.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> import adjointdpm as adp
        >>> network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3))
        >>> [each.shape[1] for each in adp.metrics.Layers(network, ["0", "2"])(torch.zeros(1, 3, 8, 8))]
        [4, 5]
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
        self.network: nn.Module = network
        self.names: tuple[str, ...] = tuple(names)
        self.preprocess: Callable[[Tensor], Tensor] | None = preprocess

    def forward(self, images: Tensor) -> list[Tensor]:
        """Compute the named modules' outputs.

        Args:
            images: (batch, channels, height, width), in [0, 1].

        Returns:
            one tensor for each name.

        Raises:
            InputError: a module did not run, or its output is no tensor.
        """
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
    """Compute the Gram matrix of each image's features.

        G = F F^T / n          F (channels, n)

    Args:
        features: (batch, channels, height, width) with n = height * width, or (batch, tokens, channels) with
            n = tokens.

    Returns:
        (batch, channels, channels).

    References:
        Gatys, Ecker and Bethge, 2015, arXiv 1508.06576.

    Examples:
        >>> import torch
        >>> import adjointdpm as adp
        >>> adp.metrics.gram(torch.full((1, 2, 4, 4), 0.5)).tolist()
        [[[0.25, 0.25], [0.25, 0.25]]]
    """
    flat = features.flatten(2) if features.ndim == 4 else features.transpose(1, 2)
    return flat @ flat.transpose(1, 2) / flat.shape[2]


@dataclass(frozen=True, eq=False)
class Style(Weighable):
    """Relative distance of Gram matrices from those of one reference image.

        mean_l |G_l(x) - G_l(r)|^2 / |G_l(r)|^2          0 at the reference, 1 for an image without features

    A Gram matrix holds no places, so that the metric does not depend on the content: add `Content(features)` to keep
    the content.

    Args:
        features: a function from images to feature maps, such as `HiddenStates` or `Layers`.
        reference: the reference image r, (3, height, width), in [0, 1], of any size.

    Raises:
        InputError: the reference has another shape; when called, if a layer's features of the reference are all 0.

    References:
        Gatys, Ecker and Bethge, 2015, arXiv 1508.06576.

    Examples:
        >>> import torch
        >>> import adjointdpm as adp
        >>> reference = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))
        >>> metric = adp.metrics.Style(lambda images: [images], reference)
        >>> metric(reference[None]).tolist()
        [0.0]
    """

    features: Features
    reference: Tensor

    def __post_init__(self) -> None:
        if self.reference.ndim != 3 or len(self.reference) != 3:
            raise InputError(f"a reference is (3, height, width), but is {tuple(self.reference.shape)}")
        object.__setattr__(self, "_known", {})

    def _grams(self, like: Tensor) -> list[Tensor]:
        """Return the reference's Gram matrices, which are made once for each dtype and device, without a graph.

        Raises:
            InputError: a layer's features of the reference are all 0.
        """
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
    """Relative distance of features from those of target images, place by place.

        mean_l |F_l(x) - F_l(y)|^2 / |F_l(y)|^2          0 at the target

    Args:
        features: a function from images to feature maps, such as `HiddenStates` or `Layers`.
        target: the target y, (batch, 3, height, width), or (1, 3, height, width) for all images.

    References:
        Gatys, Ecker and Bethge, 2015, arXiv 1508.06576.

    Examples:
        >>> import torch
        >>> import adjointdpm as adp
        >>> metric = adp.metrics.ContentDistance(lambda images: [images], torch.full((1, 3, 8, 8), 0.5))
        >>> metric(torch.ones(2, 3, 8, 8)).tolist()
        [1.0, 1.0]
    """

    features: Features
    target: Tensor

    def __call__(self, images: AnyImages) -> Values:
        return _relative(self.features(images), self.features(self.target))


@dataclass(frozen=True, eq=False)
class Content(Paired):
    """`ContentDistance` to the image that a task compares with: that of the same noise, before.

    In a sum it keeps the content while another metric changes the style: `style + 0.5 * Content(features)`.

    Args:
        features: a function from images to feature maps, such as `HiddenStates` or `Layers`.

    Raises:
        InputError: when called directly.
    """

    features: Features

    def beside(self, others: AnyImages) -> ContentDistance:
        """Return the distance from the features of the given images.

        Args:
            others: (batch, 3, height, width), in [0, 1].

        Returns:
            the metric of a batch of the same size.
        """
        return ContentDistance(self.features, others)


def _relative(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
    parts = []
    for ours, theirs in zip(found, wanted, strict=True):
        wide = torch.promote_types(
            theirs.dtype, torch.float32
        )  # squares of half precision under- and overflow
        away = (ours.to(wide) - theirs.to(wide)).flatten(1).square().sum(1)
        parts.append(away / theirs.to(wide).flatten(1).square().sum(1).clamp(min=1e-12))
    return torch.stack(parts).mean(0)
