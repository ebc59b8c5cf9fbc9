"""The inversion of a pipeline's own sampling, for any scheduler that adds no noise.

    latents(noise, cond) = encode_image(images)

`FlowSampler` over the same pipeline encodes the images, and solves the flow backwards on the scheduler's times. The
sampling that is inverted is the pipeline's own.
"""

from typing import Any

from torch import Tensor

from .._types import Cond, InputError, Stats, in_range
from ..pipelines.pipeline_model import PipelineModel
from .flow_sampler import FlowSampler
from .inversion import check_images, inverted

__all__ = ["inverted_by_pipeline"]


def inverted_by_pipeline(
    sampler: Any, images: Tensor, cond: Cond, tolerance: float
) -> tuple[Tensor, Stats]:
    """Return the noise from which a pipeline makes given images, differentiable, and the record of it.

    Args:
        sampler: the `PipelineSampler`, whose module imports this one.
        images: (batch, *image_shape), in [0, 1].
        cond: the conditioning.
        tolerance: the largest accepted distance of the sampling's end from the latents, as a fraction of their norm.

    Returns:
        noise, (batch, *latent_shape), and the calls of the inversion, with the distance in `drift`.

    Raises:
        InputError: as in `PipelineSampler.invert`.
        InversionError: the iteration does not reach the tolerance.
    """
    in_range("tolerance", tolerance, 0, open_low=True)
    kind = type(sampler.pipe).__name__
    if sampler.medium != "image":
        raise InputError(f"invert is of images, but {kind} makes {sampler.medium}")
    check_images(images, tuple(sampler.image_shape))
    if sampler.draws() > 1:
        raise InputError(
            f"{type(sampler.pipe.scheduler).__name__} adds noise in its steps, so its sampling cannot be inverted; "
            "take a scheduler without, such as DPMSolverMultistepScheduler.from_config(pipe.scheduler.config), or "
            "FlowSampler.from_pipeline(pipe)"
        )
    sizes = {name: sampler.arguments[name] for name in ("height", "width") if name in sampler.arguments}
    model = PipelineModel(sampler.pipe, **sizes)
    flow = FlowSampler(
        model, steps=sampler.steps, grid=model.visited, guidance_scale=sampler.guidance_scale
    )
    instead = "FlowSampler.from_pipeline(pipe, solver=Heun())"
    return inverted(sampler, flow, model.encode_image(images), cond, tolerance, instead)
