"""What a `PipelineSampler` passes to a pipeline's call, and the checks of what it is given for that.

    arguments of the call = those that the sampler sets  |  the user's further ones  |  the conditioning

No argument has two sources: what the sampler sets is refused in the other two.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from .._types import Cond, InputError
from ..pipelines.call_signature import Arguments
from ..pipelines.checks import followed
from ..pipelines.prompt_encoding import as_given
from ..pipelines.torch_interception import Draws
from .base import check_cond, for_batch

__all__ = [
    "STEP_NOISE",
    "call_arguments",
    "check_drawn",
    "check_frames",
    "check_names",
    "check_start",
    "checked_cond",
]

STEP_NOISE = "step_noise"
"""The name in a conditioning of the noise that is drawn after the first one."""

_OURS = {  # the pipeline's arguments that the sampler sets, and the setting that each follows from
    "num_inference_steps": "steps=",
    "latents": "noise, the sampler's first argument",
    "output_type": 'nothing, it is "pt"',
    "return_dict": "nothing, it is False",
    "generator": "seed=",
    "num_images_per_prompt": "a noise for each image",
    "num_videos_per_prompt": "a noise for each video",
    "num_waveforms_per_prompt": "a noise for each waveform",
    "frame_rate": "frame_rate=",
}


def call_arguments(
    takes: Arguments, ours: Mapping[str, Any], given: Mapping[str, Any], cond: Cond
) -> dict[str, Any]:
    """The arguments to pass to a pipeline's call.

    Args:
        takes: the arguments of the call.
        ours: those that the sampler sets, of which the call may not have all.
        given: the user's further ones.
        cond: the conditioning.

    Returns:
        the arguments, by name.
    """
    ours = {
        **ours,
        "output_type": "pt",
        "return_dict": False,
        "negative_prompt": None,  # the default of some is "", which they refuse beside embeddings
    }
    named = as_given(takes, {k: v for k, v in cond.items() if k != STEP_NOISE})
    return {**{name: value for name, value in ours.items() if name in takes.names}, **given, **named}


def check_names(takes: Arguments, kind: str, names: Iterable[str], scale: bool) -> None:
    """Raise for arguments that a pipeline's call does not take, or that the sampler itself sets.

    Args:
        takes: the arguments of the call.
        kind: the name of the pipeline's class.
        names: those that are given.
        scale: whether the guidance scale may be among them, as it may in a conditioning.

    Raises:
        InputError: there is such an argument.
    """
    known = {*takes.names, *takes.lengths, STEP_NOISE}
    unknown = sorted(set(names) - known)
    if unknown:
        raise InputError(f"{kind} takes no {', '.join(unknown)}; it takes {', '.join(takes.names)}")
    for name in names:
        if name in _OURS or (name == takes.guidance and not scale):
            instead = _OURS.get(name, "guidance_scale=")
            raise InputError(f"the sampler itself passes {name} to the pipeline; give {instead} instead")


def checked_cond(takes: Arguments, kind: str, cond: Cond, batch: int) -> Cond:
    """The conditioning of a batch, checked.

    Args:
        takes: the arguments of the call.
        kind: the name of the pipeline's class.
        cond: of one sample or of the whole batch.
        batch: number of samples.

    Returns:
        the conditioning with a row for each sample; see also `followed`.

    Raises:
        InputError: it holds what the call does not take or the sampler sets, an embedding of whole numbers, a guidance
            scale for each image, or what `for_batch` refuses.
    """
    check_cond(cond)
    check_names(takes, kind, cond, scale=True)
    for name in {*takes.conditioning} - takes.masks:
        if name in cond and not cond[name].is_floating_point():
            raise InputError(f"cond[{name!r}] must be floating point, but is {cond[name].dtype}")
    scale = cond.get(str(takes.guidance))
    if scale is not None and scale.ndim:
        raise InputError(
            f"cond[{takes.guidance!r}] must be one number for the whole batch, a 0-dimensional tensor, but "
            f"has shape {tuple(scale.shape)}"
        )
    return for_batch(followed(cond), batch)


def check_start(images: Tensor, image_shape: tuple[int, ...], seeds: Sequence[int], cond: Cond) -> None:
    """Raise unless a sampling can start from these images with these seeds.

    Args:
        images: (batch, *image_shape), in [0, 1].
        image_shape: that of the sampler.
        seeds: one for each image.
        cond: the conditioning.

    Raises:
        InputError: images of another size or range, another number of seeds, or noise of the steps besides.
    """
    if tuple(images.shape[1:]) != image_shape:
        raise InputError(
            f"this sampler makes images of {image_shape}, but was given {tuple(images.shape[1:])}; "
            "resize them first"
        )
    if not bool(((images >= 0) & (images <= 1)).all()):
        raise InputError(
            "images must lie in [0, 1], since pipelines take any below 0 for images in [-1, 1], but "
            f"they reach from {float(images.min()):g} to {float(images.max()):g}"
        )
    if len(seeds) != len(images):
        raise InputError(f"there are {len(images)} images and {len(seeds)} seeds; give one for each")
    if STEP_NOISE in cond:
        raise InputError("the noise of the steps follows from seeds=; leave cond['step_noise'] out")


def check_frames(frames: Sequence[int], count: int) -> None:
    """Raise unless a video has all of these frames.

    Args:
        frames: their numbers.
        count: how many there are.

    Raises:
        InputError: it has not.
    """
    if not len(frames) or any(not 0 <= frame < count for frame in frames):
        raise InputError(
            f"frames are one or more numbers from 0 to {count - 1}, but are {list(frames)}; the video has {count}"
        )


def check_drawn(pipe: Any, draws: Draws, given: int, steps: int) -> None:
    """Raise unless a pipeline drew the noise, and the noise of every step but the last.

    The last step of most stochastic schedulers adds no noise.

    Args:
        pipe: the pipeline.
        draws: the noise of a run that has ended.
        given: how many entries of `STEP_NOISE` it had.
        steps: of the run.

    Raises:
        InputError: part of the noise was not drawn.
    """
    kind, scheduler = type(pipe).__name__, type(getattr(pipe, "scheduler", None)).__name__
    if draws.left > given:
        raise InputError(f"{kind} draws no noise, so the sampler's noise has no influence on its image")
    if draws.left and (draws.left > 1 or given == 1):
        raise InputError(
            f"cond['step_noise'] holds noise for {given} draws, but {scheduler} drew {given - draws.left} times "
            f"within its {steps} steps, so the rest has no influence and no gradient; use an ancestral or SDE "
            "scheduler, and give one entry for each draw"
        )
