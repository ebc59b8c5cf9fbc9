"""A small Stable Diffusion pipeline, the arguments of its call, and the image that it makes."""

import inspect

import diffusers

import adjointdpm as adp
from tests.tiny.pipelines import draw, embeds, first, sd, text_unet


def small(**parts):
    pipe = sd(diffusers.StableDiffusionPipeline, unet=text_unet(block_out_channels=(8, 16)), **parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def arguments(**changes):
    return {
        **embeds(),
        "latents": draw(1, 4, 8, 8),
        "num_inference_steps": 2,
        "output_type": "pt",
        **changes,
    }


def image(pipe, adjoint=None, **changes):
    with adp.differentiable(pipe, adjoint) as call:
        return first(call(**arguments(**changes)))


class Undecorated(diffusers.StableDiffusionPipeline):
    """What people do by hand: the class without its no_grad."""

    __call__ = inspect.unwrap(diffusers.StableDiffusionPipeline.__call__)


def as_class(kind):
    pipe = small()
    pipe.__class__ = kind
    return pipe
