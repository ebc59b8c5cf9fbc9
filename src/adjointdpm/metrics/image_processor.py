"""The preprocessing of a folder's preprocessor_config.json as differentiable operations on tensors.

The settings are those of the model's own image processor in transformers, with the defaults of its class. The same
setting means different things to different processors (`crop_pct` above all). So each known reading of the settings is
applied to test images of several shapes, and the first one whose pixels are those of the processor itself is used.
Where no reading fits, the folder is refused.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .._types import InputError
from .preprocess import FILTERS, CenterCrop, FlipChannels, Pad, Resize, Scale, Size, Standardize, Steps

__all__ = [
    "has_processor",
    "one_line",
    "probe_image",
    "processing_of",
    "read_processor",
]

_SHAPES = ((64, 64), (43, 75), (384, 320))
_TOLERANCE = 0.02  # of the pixels' norm; rounding to 8 bits alone costs up to 0.007

# Switches of operations that are followed, and of those that do nothing to an RGB image.
_KNOWN = {
    "do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_pad", "do_flip_channel_order",
    "do_convert_rgb", "do_reduce_labels",
}  # fmt: skip


def has_processor(name: str) -> bool:
    """Return whether a folder, or a model on a hub, has settings of an image processor, readable or not.

    Args:
        name: a folder, or a model's name on a hub.

    Returns:
        whether one of the two files of settings exists.
    """
    from transformers.utils import cached_file

    files = ("preprocessor_config.json", "processor_config.json")
    missing: dict[str, Any] = {"_raise_exceptions_for_missing_entries": False}
    return any(cached_file(name, file, **missing) is not None for file in files)


def read_processor(name: str) -> Any:
    """Read an image processor of transformers, in its form without torchvision.

    Args:
        name: a folder, or a model's name on a hub.

    Returns:
        the image processor.

    Raises:
        InputError: there is none, it cannot be read, or it names an operation that is not known here.
    """
    from transformers import AutoImageProcessor
    from transformers.image_processing_utils import BaseImageProcessor

    try:
        processor = AutoImageProcessor.from_pretrained(name, use_fast=False, trust_remote_code=False)
        declared, _ = BaseImageProcessor.get_image_processor_dict(name)
    except Exception as error:  # whatever a broken file makes transformers raise
        raise InputError(
            f"the image processor of {name!r} cannot be read: {one_line(error)}; the folder needs a "
            "preprocessor_config.json, as processor.save_pretrained(folder) writes it"
        ) from error
    unknown = sorted(k for k, v in declared.items() if k.startswith("do_") and v and k not in _KNOWN)
    if unknown:
        raise InputError(
            f"the image processor of {name!r} does {', '.join(unknown)}, which has no differentiable form here; "
            f"{_ADVICE}"
        )
    return processor


_ADVICE = (
    "build Classifier(model, mean, std, size) of adjointdpm.zoo yourself, or pass any module from images in [0, 1] to "
    "logits"
)


def processing_of(processor: Any, name: str, channels: int) -> Steps:
    """Return the operations of an image processor, compared with its own pixels on test images.

    Args:
        processor: an image processor of transformers.
        name: the name of its folder, for messages.
        channels: number of channels of the images, 1 or 3.

    Returns:
        the operations, differentiable; their result differs from the processor's by at most 2 % of the pixels' norm
        on each test image, where 8-bit rounding alone makes up to 0.7 %.

    Raises:
        InputError: the processor fails on a test image, or no reading of its settings gives its pixels.
    """
    settings = processor.to_dict()
    images = [probe_image(channels, *shape) for shape in _SHAPES]
    try:
        wanted = [processor(_pillow(image), return_tensors="pt")["pixel_values"] for image in images]
    except Exception as error:
        raise InputError(
            f"the image processor of {name!r} fails on an image of {channels} channels: {one_line(error)}; mend its "
            f"preprocessor_config.json, or {_ADVICE}"
        ) from error
    closest, unfit = math.inf, (InputError, KeyError, RuntimeError, TypeError, ValueError)
    with suppress(*unfit):  # settings that no reading was made for
        for steps in _readings(settings):
            off = math.inf
            with suppress(*unfit):  # a reading that these settings have not
                off = max(_off(steps(image), own) for image, own in zip(images, wanted, strict=True))
            if off <= _TOLERANCE:
                return steps
            closest = min(closest, off)
    kind, found = type(processor).__name__, "have another shape" if closest == math.inf else "differ"
    by = "" if closest == math.inf else f" by {100 * closest:.0f} %"
    raise InputError(
        f"the image processor {kind} of {name!r} does more than its settings say in the operations known here (resize, "
        f"center crop, rescale, normalize, pad, channel order): pixels {found}{by}; {_ADVICE}"
    )


def probe_image(channels: int, height: int, width: int) -> Tensor:
    """Make a test image of ramps, waves and edges, another one in each channel.

    Args:
        channels: number of channels, 1 to 3.
        height: in pixels.
        width: in pixels.

    Returns:
        (1, channels, height, width), in [0, 1], float32, in multiples of 1 / 255.
    """
    y = torch.linspace(0, 1, height, dtype=torch.float64)[:, None]
    x = torch.linspace(0, 1, width, dtype=torch.float64)
    planes = [
        0.6 * x + 0.4 * torch.sin(20 * y) ** 2 + 0 * y,
        0.7 * y + 0.3 * ((8 * x).floor() % 2),
        0.5 * (x - 0.3).abs() + 0.5 * torch.cos(9 * x * y) ** 2,
    ]
    return ((torch.stack(planes)[None, :channels] * 255).round() / 255).float()


def _pillow(image: Tensor) -> Any:
    from PIL import Image

    content = (image[0] * 255).round().to(torch.uint8)
    return Image.fromarray(content[0].numpy() if len(content) == 1 else content.permute(1, 2, 0).numpy())


def _off(found: Tensor, own: Tensor) -> float:
    if found.shape != own.shape:
        return math.inf
    return float((found.double() - own.double()).norm() / own.double().norm().clamp(min=1e-12))


def _readings(s: Mapping[str, Any]) -> Iterator[Steps]:
    """Yield the operations of each known reading of the settings."""
    for geometry in _geometries(s):
        pads = [Pad(*_sides(s["pad_size"]))] if s.get("do_pad") and s.get("pad_size") else []
        yield Steps((*geometry, *_values(s), *pads))


def _geometries(s: Mapping[str, Any]) -> Iterator[list[Callable[[Tensor], Tensor]]]:
    size, crop = s.get("size") or {}, s.get("crop_size") or {}
    resample = int(s["resample"]) if s.get("resample") is not None else 2
    if resample and resample not in FILTERS:
        return
    crops = [CenterCrop(partial(_fixed, _sides(crop)))] if s.get("do_center_crop") and crop else []
    if not s.get("do_resize"):
        yield [*crops]
        return
    for wanted in _sizes(size, s):
        yield [Resize(wanted, resample), *crops]
    edge, share = size.get("shortest_edge"), s.get("crop_pct")
    if edge and share:  # the crop is part of the resizing, below 384 pixels
        square = partial(_fixed, (edge, edge))
        first = Resize(partial(_shortest, int(edge / share)), resample)
        yield [first, CenterCrop(square)] if edge < 384 else [Resize(square, resample)]
    if crops and "height" in size:  # a share of the image is cropped, and what is left resized
        share_of = tuple(size[k] / crop[k] for k in ("height", "width"))
        yield [CenterCrop(partial(_share, share_of)), Resize(partial(_fixed, _sides(size)), resample)]


def _sizes(size: Mapping[str, int], s: Mapping[str, Any]) -> Iterator[Size]:
    """Yield each known reading of the setting `size`, as a function from a height and width to new ones."""
    edge, longest, share = size.get("shortest_edge"), size.get("longest_edge"), s.get("crop_pct")
    if edge and longest:
        yield partial(_bounded, edge, longest)
    elif edge:
        yield partial(_shortest, edge)
        yield partial(_shortest, int(256 / 224 * edge))
        if share:
            yield partial(_shortest, int(edge / share))
        if s.get("size_divisor"):
            yield partial(_multiple, edge, s["size_divisor"])
    elif "max_height" in size and "max_width" in size:
        yield partial(_within, size["max_height"], size["max_width"])
    elif "height" in size and "width" in size:
        yield partial(_fixed, _sides(size))
        if share and size["height"] == size["width"]:
            yield partial(_shortest, int(size["height"] / share))
        elif share:
            yield partial(_fixed, (int(size["height"] / share), int(size["width"] / share)))


def _values(s: Mapping[str, Any]) -> list[Callable[[Tensor], Tensor]]:
    """Return the operations from [0, 1] to the network's numbers; the unit of the settings is an 8-bit level."""
    gain = 255 * float(s["rescale_factor"]) if s.get("do_rescale") else 255.0
    offset = -1.0 if s.get("do_rescale") and s.get("rescale_offset") else 0.0
    steps: list[Callable[[Tensor], Tensor]] = []
    if abs(gain - 1) > 1e-6 or offset:
        steps.append(Scale(gain, offset))
    if s.get("do_normalize"):
        steps.append(Standardize(_channels(s["image_mean"]), _channels(s["image_std"])))
    if s.get("include_top"):  # a second division
        steps.append(Standardize((0.0,), _channels(s["image_std"])))
    if s.get("do_flip_channel_order"):
        steps.append(FlipChannels())
    return steps


def _channels(values: Any) -> tuple[float, ...]:
    return tuple(map(float, values)) if isinstance(values, list | tuple) else (float(values),)


def _sides(size: Mapping[str, int]) -> tuple[int, int]:
    return size["height"], size["width"]


def _fixed(size: tuple[int, int], height: int, width: int) -> tuple[int, int]:
    return size


def _share(of: tuple[float, float], height: int, width: int) -> tuple[int, int]:
    return int(of[0] * min(height, width)), int(of[1] * min(height, width))


def _shortest(edge: int, height: int, width: int) -> tuple[int, int]:
    return (int(edge * height / width), edge) if width <= height else (edge, int(edge * width / height))


def _bounded(edge: int, longest: int, height: int, width: int) -> tuple[int, int]:
    """Return the size whose shorter side is `edge`, or less where the longer one would exceed `longest`."""
    short, long, exact = min(height, width), max(height, width), float(edge)
    if long / short * edge > longest:
        exact = longest * short / long
    near = round(exact)
    if short == near:
        return height, width
    other = int(exact * long / short)
    return (other, near) if width < height else (near, other)


def _multiple(edge: int, divisor: int, height: int, width: int) -> tuple[int, int]:
    height, width = _shortest(edge, height, width)
    return math.ceil(height / divisor) * divisor, math.ceil(width / divisor) * divisor


def _within(most_high: int, most_wide: int, height: int, width: int) -> tuple[int, int]:
    scale = min(most_high / height, most_wide / width)
    return int(height * scale), int(width * scale)


def one_line(error: BaseException) -> str:
    """Return an error's message in one line.

    Args:
        error: the error.

    Returns:
        at most 200 characters; the name of the error's class where it has no message.
    """
    return " ".join(str(error).split())[:200] or type(error).__name__
