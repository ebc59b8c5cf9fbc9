"""Pipelines around a UNet."""

from typing import Any

import diffusers
import torch

from tests.tiny.cases import (
    case,
    draw,
    embeds,
    image,
    plain_unet,
    sd,
    sdxl,
    sdxl_arguments,
    text_unet,
    vp,
)


@case("StableDiffusionPipeline")
def _() -> Any:
    return sd(diffusers.StableDiffusionPipeline), {**embeds(), "latents": draw(1, 4, 8, 8)}


@case("StableDiffusionImg2ImgPipeline")
def _() -> Any:
    arguments = {
        **embeds(),
        "image": image(),
        "strength": 1.0,
        "generator": torch.Generator().manual_seed(3),
    }
    return sd(diffusers.StableDiffusionImg2ImgPipeline), arguments


@case("StableDiffusionInpaintPipeline")
def _() -> Any:
    pipe = sd(diffusers.StableDiffusionInpaintPipeline, unet=text_unet(in_channels=9))
    arguments = {
        **embeds(),
        "image": image().detach(),
        "mask_image": torch.ones(1, 1, 16, 16).tril(),
        "masked_image_latents": draw(1, 4, 8, 8, seed=6),
        "latents": draw(1, 4, 8, 8),
        "height": 16,
        "width": 16,
        "generator": torch.Generator().manual_seed(3),
    }
    return pipe, arguments


@case("StableDiffusionControlNetPipeline")
def _() -> Any:
    unet = text_unet()
    control = diffusers.ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 8))
    for parameter in control.parameters():  # its last layers begin at zero, where gradients are, too
        torch.nn.init.normal_(parameter, std=0.1)
    pipe = sd(diffusers.StableDiffusionControlNetPipeline, unet=unet, controlnet=control.eval())
    return pipe, {**embeds(), "latents": draw(1, 4, 8, 8), "image": image()}


@case("StableDiffusionXLPipeline")
def _() -> Any:
    return sdxl(diffusers.StableDiffusionXLPipeline), sdxl_arguments()


@case("LatentConsistencyModelPipeline")
def _() -> Any:
    pipe = sd(
        diffusers.LatentConsistencyModelPipeline,
        scheduler=vp(diffusers.LCMScheduler),
        unet=text_unet(time_cond_proj_dim=8),
    )
    arguments = {"prompt_embeds": draw(1, 5, 8, seed=1), "latents": draw(1, 4, 8, 8)}
    return pipe, {**arguments, "generator": torch.Generator().manual_seed(3)}


@case("DDPMPipeline")
def _() -> Any:
    pipe = diffusers.DDPMPipeline(unet=plain_unet(), scheduler=diffusers.DDPMScheduler(clip_sample=False))
    return pipe, {"batch_size": 1, "generator": torch.Generator().manual_seed(3)}


@case("DDIMPipeline")
def _() -> Any:
    pipe = diffusers.DDIMPipeline(unet=plain_unet(), scheduler=diffusers.DDIMScheduler(clip_sample=False))
    return pipe, {"batch_size": 1, "eta": 0.5, "generator": torch.Generator().manual_seed(3)}
