"""The image-to-image pipeline of a text-to-image pipeline's family, over the same parts."""

from typing import Any

from .._types import InputError
from .call_signature import call_names

__all__ = ["image_to_image"]


def image_to_image(pipe: Any) -> Any:
    """Return diffusers' own image-to-image pipeline over the parts of a text-to-image pipeline.

    Args:
        pipe: the pipeline; its modules are shared.

    Returns:
        the other pipeline.

    Raises:
        InputError: diffusers has none for this class, or one that does not start from the noised image.
    """
    from diffusers import AutoPipelineForImage2Image  # takes seconds to import; here it already is imported

    kind = type(pipe).__name__
    instead = "so it cannot start at a noised image; use FlowSampler.from_pipeline(pipe), which can, with its own steps"
    try:
        made = AutoPipelineForImage2Image.from_pipe(pipe)
    except ValueError as error:
        raise InputError(f"diffusers has no image-to-image pipeline for a {kind}, {instead}") from error
    if not {"image", "strength"} <= {*call_names(type(made))}:
        raise InputError(f"{type(made).__name__} takes no strength, {instead}")
    return made
