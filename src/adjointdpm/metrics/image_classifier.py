"""Image classifiers as functions of images in [0, 1], and the names of their classes.

logits(x) = network(preprocess(x))       x (batch, channels, height, width), never clamped
"""

import difflib
import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .._types import InputError
from ..files.atomic_write import whole_files, write_file
from ..files.pretrained import load_pretrained, quiet
from .image_processor import one_line, processing_of, read_processor
from .preprocess import Preprocess

__all__ = ["Classifier", "Labelled", "PlainClassifier", "as_classifier", "read_classifier"]


class Labelled(nn.Module, ABC):
    """Base class of classifiers whose classes have names.

    The attribute `labels` holds unique names: where two classes share a name, their numbers are added, as in
    "crane (class 134)".

    Args:
        labels: the name of each class, in the order of the logits.
    """

    names: list[str]
    """The names as they were given."""

    labels: list[str]
    """The names that are used here, each of them once."""

    def __init__(self, labels: Sequence[Any]) -> None:
        super().__init__()
        self.names = [str(label) for label in labels]
        often = Counter(self.names)
        self.labels = [f"{n} (class {i})" if often[n] > 1 else n for i, n in enumerate(self.names)]

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the weights and the labels to a folder, whole or not at all.

        Args:
            folder: the folder; it is made if it does not exist.
        """

    def index(self, label: str | int) -> int:
        """Return the number of a class.

        Args:
            label: the class's name, or its number (also as a string); a name that consists of digits takes
                precedence over a number.

        Returns:
            the class's place among the logits.

        Raises:
            InputError: there is no such class, or the name belongs to several.

        Examples:
            >>> from torch import nn
            >>> import adjointdpm as adp
            >>> adp.zoo.PlainClassifier(nn.Flatten(), ["cat", "dog"]).index("dog")
            1
        """
        if label in self.labels:
            return self.labels.index(label)  # type: ignore[arg-type]  # it is one of the names
        same = [full for full, name in zip(self.labels, self.names, strict=True) if name == label]
        if same:
            raise InputError(
                f"{len(same)} classes of the classifier are called {label!r}; give one of {', '.join(map(repr, same))}"
            )
        number = int(label) if isinstance(label, int) or label.isdecimal() else -1
        if 0 <= number < len(self.labels):
            return number
        text = str(label)
        near = [each for each in self.labels if text in each or each in text]
        near = near or difflib.get_close_matches(text, self.labels, 3)
        hint = f"; did you mean {', '.join(near[:5])}?" if near else ""
        raise InputError(
            f"the classifier has no label {label!r} among its {len(self.labels)}, nor a class of that number{hint}"
        )


class Classifier(Labelled):
    """A transformers image classifier as a function of images in [0, 1].

        logits(x) = model(preprocess(x))

    The preprocessing is a part of the function, so that the gradient passes through it. `load_classifier` makes one
    with the preprocessing of a folder's own image processor; use the constructor where there is none.

    Args:
        model: a transformers image classifier; its `config.id2label` names the classes.
        mean: the normalization's mean of each channel, in units of the range [0, 1].
        std: the normalization's standard deviation of each channel, above 0.
        size: side of the square in pixels to which images are resized; None leaves their size unchanged.

    Raises:
        InputError: `id2label` does not name each class from 0 on, or size or std is not positive; when called, if the
            images have another number of channels.

    Examples:
        >>> import torch
        >>> import adjointdpm as adp
        >>> classifier = adp.load_classifier("emoji/resnet")
        >>> classifier(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 234])
    """

    channels: int | None
    """The number of channels that the network takes; None where its config does not say."""

    processor: Any = None
    """The image processor whose operations `preprocess` repeats; None for a mean, a std and a size."""

    def __init__(self, model: Any, mean: Sequence[float], std: Sequence[float], size: int | None) -> None:
        config = model.config
        names = {int(i): name for i, name in config.id2label.items()}
        if sorted(names) != list(range(config.num_labels)):
            raise InputError(
                f"the classifier has {config.num_labels} classes, but id2label of its config.json names the classes "
                f"{sorted(names)[:8]}{' and more' if len(names) > 8 else ''}; name each from 0 on"
            )
        super().__init__([names[i] for i in range(config.num_labels)])
        self.model = model
        self.channels = getattr(config, "num_channels", None)
        self.preprocess: Callable[[Tensor], Tensor] = Preprocess(size, tuple(mean), tuple(std), "bilinear")

    def forward(self, images: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch classes"]:
        """Compute the logits of images.

        Args:
            images: (batch, channels, height, width), in [0, 1]; they are not clamped.

        Returns:
            the logits, (batch, classes), differentiable.
        """
        return self.model(self.normalized(images)).logits

    def normalized(self, images: Float[Tensor, "batch channels h w"]) -> Tensor:
        """Bring images to the size and scale that the network itself takes.

        Args:
            images: (batch, channels, height, width), in [0, 1].

        Returns:
            the network's input, (batch, channels, height', width').

        Raises:
            InputError: the network takes another number of channels.
        """
        if self.channels is not None and images.shape[1] != self.channels:
            raise InputError(
                f"the classifier takes images of {self.channels} channels, but the sampler makes {images.shape[1]}; "
                "choose another classifier"
            )
        return self.preprocess(images)

    def save(self, folder: Path) -> None:
        """Write a folder of transformers, which `load_classifier` reads, whole or not at all.

        Args:
            folder: the folder; it is made if it does not exist.
        """
        with whole_files(folder) as beside:
            self.model.save_pretrained(beside)
            if self.processor is not None:
                self.processor.save_pretrained(beside)
            else:
                write_file(
                    beside / "preprocessor_config.json", json.dumps(self._plain(), indent=1).encode()
                )

    def _plain(self) -> dict[str, Any]:
        """Return the preprocessing as the settings of the simplest image processor.

        Raises:
            InputError: `preprocess` was replaced by something else than a `Preprocess`.
        """
        plain = self.preprocess
        if not isinstance(plain, Preprocess):
            raise InputError(
                f"a classifier's preprocessing must be a Preprocess to be saved, but is a {type(plain).__name__}"
            )
        side, resample = plain.size, 3 if plain.mode == "bicubic" else 2
        return {
            "image_processor_type": "ViTImageProcessor",
            "do_resize": side is not None,
            "size": {"height": side or 1, "width": side or 1},
            "resample": resample,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(plain.mean),
            "image_std": list(plain.std),
        }


class PlainClassifier(Labelled):
    """Any module from images in [0, 1] to logits, with names for its classes.

    Use it for a network of your own; resizing and normalization are the network's part.

    Args:
        network: a module from (batch, channels, height, width) to (batch, classes).
        labels: the name of each class, in the order of the logits.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> import adjointdpm as adp
        >>> network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> classifier = adp.zoo.PlainClassifier(network, ["red", "green", "blue"])
        >>> classifier(torch.full((1, 3, 8, 8), 0.5)).tolist()
        [[0.5, 0.5, 0.5]]
    """

    def __init__(self, network: nn.Module, labels: Sequence[Any]) -> None:
        super().__init__(labels)
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Compute the network's logits.

        Args:
            images: (batch, channels, height, width), in [0, 1].

        Returns:
            the logits, (batch, classes).
        """
        return self.network(images)

    def save(self, folder: Path) -> None:
        """Write the weights and the labels to a folder, whole or not at all.

        `safetensors.torch.load_model(network, folder / "model.safetensors")` reads the weights, and `labels.json` is
        the list of labels.

        Args:
            folder: the folder; it is made if it does not exist.
        """
        from safetensors.torch import save_model

        with whole_files(folder) as beside:
            save_model(self.network, str(beside / "model.safetensors"))
            write_file(beside / "labels.json", json.dumps(self.labels, indent=1).encode())


def as_classifier(network: nn.Module, like: Tensor, role: str) -> Labelled:
    """Give names to a module's classes, after the module has been called on test images.

    The names are the module's own `labels`, or else the classes' numbers.

    Args:
        network: a module from images (batch, channels, height, width) in [0, 1] to logits (batch, classes).
        like: one image (channels, height, width), for the size, dtype and device.
        role: the module's role, for messages.

    Returns:
        the network itself where it is a `Labelled`, else a `PlainClassifier` of it.

    Raises:
        InputError: it is no module, it fails on such images, it returns something else than finite logits, its
            `labels` are more or fewer than its logits, or its logits of one image differ between two batches, as those
            of a module in training mode do.
    """
    if not isinstance(network, nn.Module):
        raise InputError(f"the {role} must be a torch.nn.Module, but is {type(network).__name__}")
    grey = torch.full((3, *like.shape), 0.5, dtype=like.dtype, device=like.device)
    images = grey * torch.linspace(0.9, 1.1, grey.numel()).to(grey).view_as(grey)
    try:
        with torch.no_grad():
            logits, again = network(images[:2]), network(images[[0, 2]])
    except InputError as error:
        raise InputError(f"the {role} cannot take the sampler's images: {error}") from error
    except Exception as error:
        raise InputError(
            f"the {role} fails on images as the sampler makes them, of shape {tuple(images[:2].shape)} and "
            f"{images.dtype}: {one_line(error)}"
        ) from error
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != 2:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise InputError(
            f"the {role} must return logits (batch, classes), here (2, classes), but returned {got}; load a model of "
            "transformers with adjointdpm.load_classifier, which adds its preprocessing"
        )
    if not bool(torch.isfinite(logits).all()):
        raise InputError(f"the {role}'s logits of a grey image are not finite: {logits[0].tolist()[:4]}")
    away = float((logits[0] - again[0]).abs().max())
    if away > 1e-2 * max(1.0, float(logits.abs().max())):
        raise InputError(
            f"the {role} answers differently for the same image in two batches (logits differ by {away:.2g}); "
            "call its eval() first"
        )
    if isinstance(network, Labelled):
        return network
    names = getattr(network, "labels", None) or [str(i) for i in range(logits.shape[1])]
    if len(names) != logits.shape[1]:
        raise InputError(
            f"the {role} has {logits.shape[1]} logits, but {len(names)} labels; name each class"
        )
    return PlainClassifier(network, names)


def read_classifier(path: str, device: str | torch.device) -> Classifier:
    """Read a classifier of transformers, its weights frozen and in float32, with its image processor's operations.

    Args:
        path: a folder, or a model's name on a hub.
        device: the device of the weights.

    Returns:
        the classifier, in evaluation mode.

    Raises:
        InputError: it cannot be read, weights are missing or not expected, its preprocessing has no differentiable form
            here, or it fails on an image.
    """
    with quiet():
        from transformers import AutoModelForImageClassification

        model = load_pretrained(AutoModelForImageClassification, path, trust_remote_code=False)
        processor = read_processor(path)
        model = model.float().requires_grad_(False).eval()
        return _with_processor(model, processor, path).to(device)


def _with_processor(model: Any, processor: Any, path: str) -> Classifier:
    classifier = Classifier(model, (0.0,), (1.0,), None)
    channels = classifier.channels or 3
    if channels not in (1, 3):
        raise InputError(f"the classifier {path!r} takes images of {channels} channels; images have 1 or 3")
    classifier.processor, classifier.preprocess = processor, processing_of(processor, path, channels)
    side = getattr(model.config, "image_size", None)
    height, width = side if isinstance(side, list | tuple) else (side or 64,) * 2
    try:
        logits = classifier(torch.full((1, channels, int(height), int(width)), 0.5))
    except Exception as error:
        raise InputError(f"the classifier {path!r} fails on an image: {one_line(error)}") from error
    if logits.shape != (1, len(classifier.labels)) or not bool(torch.isfinite(logits).all()):
        raise InputError(
            f"the classifier {path!r} has {len(classifier.labels)} labels, but its logits of a grey image are of shape "
            f"{tuple(logits.shape)}{'' if bool(torch.isfinite(logits).all()) else ' and not finite'}"
        )
    return classifier
