"""Stock pipelines of many families, small enough to build on the spot: no downloads, no tokenizers.

`CASES[name]()` is a pipeline and the arguments of its call, in which every tensor that can have a gradient
wants one. Graphs are much larger than latents, as in real models.
"""

from tests.tiny import cases_media, cases_transformers, cases_unets
from tests.tiny.cases import (
    CASES,
    draw,
    embeds,
    first,
    image,
    masks,
    number,
    sd,
    sd_vae,
    text_unet,
    vp,
    weights,
)

__all__ = [
    "CASES",
    "cases_media",
    "cases_transformers",
    "cases_unets",
    "draw",
    "embeds",
    "first",
    "image",
    "masks",
    "number",
    "sd",
    "sd_vae",
    "text_unet",
    "vp",
    "weights",
]
