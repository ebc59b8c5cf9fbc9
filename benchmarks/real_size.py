"""Gradients at real size: Stable Diffusion 1.5's UNet and VAE, 860 M parameters, random weights.

    python benchmarks/real_size.py --steps 1 4 16 --output docs/real_size.json                    # 256 x 256, CPU
    python benchmarks/real_size.py --device cuda --dtype bfloat16 --side 512 --steps 1 4 16 50 \
        --budget 20GiB --plain --output docs/real_size-gpu.json

For each number of steps: bytes saved for the backward pass, the peak (on a CPU the most bytes alive at once, by
following every storage, weights left out; on a GPU the device's own, weights included), denoiser calls and seconds,
of one gradient of noise, prompt and a LoRA of rank 4 through guidance, sampler and decoder; with and without the
planner.
Random weights make no images, but the work and the memory are those of the real ones.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from live import LiveBytes
from peft import LoraConfig
from record import write_record
from torch import Tensor

import adjointdpm as adp

# The published configurations of stable-diffusion-v1-5, as in its unet/ and vae/config.json.
UNET = {
    "sample_size": 64,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
}
VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 512,
}


def pipeline(dtype: torch.dtype, device: str) -> Any:
    """The pipeline without its text encoder: prompts are given as embeddings."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(**UNET)  # type: ignore[arg-type]
    unet.requires_grad_(False).add_adapter(
        LoraConfig(r=4, target_modules=["to_q", "to_k", "to_v", "to_out.0"])
    )
    parts: dict[str, Any] = dict.fromkeys(
        ("text_encoder", "tokenizer", "safety_checker", "feature_extractor")
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False
    )
    pipe = StableDiffusionPipeline(
        vae=AutoencoderKL(**VAE).requires_grad_(False),  # type: ignore[arg-type]
        unet=unet,
        scheduler=scheduler,  # type: ignore[arg-type]
        requires_safety_checker=False,
        **parts,
    )
    return pipe.to(device, dtype)


class Peak:
    """The most bytes alive at once."""

    def __init__(self, device: str) -> None:
        self.cuda, self.live, self.bytes = device != "cpu", LiveBytes(), 0

    def __enter__(self) -> "Peak":
        if self.cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        else:
            self.live.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self.cuda:
            torch.cuda.synchronize()
            self.bytes = torch.cuda.max_memory_allocated()
        else:
            self.live.__exit__(*error)
            self.bytes = self.live.peak


def main(argv: list[str]) -> None:
    """Measure, print, write JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--budget", nargs="*", default=["6GB"], help="also with the planner, at these")
    parser.add_argument("--plain", action="store_true", help="also with plain backpropagation")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--output", type=Path, default=None)
    args = parser.parse_args(argv)
    pipe = pipeline(getattr(torch, args.dtype), args.device)
    lora: list[Tensor] = [p for p in pipe.unet.parameters() if p.requires_grad]
    draw = torch.Generator().manual_seed(1)
    latent = torch.randn(1, 4, args.side // 8, args.side // 8, generator=draw).to(args.device)
    text = [torch.randn(1, 77, 768, generator=draw).to(args.device) for _ in range(2)]
    sampler = adp.FlowSampler.from_pipeline(pipe, solver=adp.Euler(), guidance_scale=5.0)
    size: Any = sampler.model
    size.latent_shape, size.image_shape = latent.shape[1:], (3, args.side, args.side)
    ways: dict[str, adp.Adjoint] = {"Checkpointed()": adp.Checkpointed()}
    ways |= {f"Checkpointed(budget={each!r})": adp.Checkpointed(budget=each) for each in args.budget}
    if args.plain:
        ways["Backprop()"] = adp.Backprop()
    rows = []
    given = adp.Cond({"prompt_embeds": text[0], "negative_prompt_embeds": text[1]})
    if args.device != "cpu":  # kernels are loaded in the first call
        warm = latent.clone().requires_grad_()
        torch.autograd.grad(sampler.replace(steps=1)(warm, given).sum(), warm)
    for name, adjoint in ways.items():
        for steps in args.steps:
            own = sampler.replace(adjoint=adjoint, steps=steps)
            noise, prompt = latent.clone().requires_grad_(), text[0].clone().requires_grad_()
            cond = given.replace(prompt_embeds=prompt)
            start = time.perf_counter()
            with Peak(args.device) as peak:
                found = torch.autograd.grad(own(noise, cond).square().mean(), [noise, prompt, *lora])
            seconds, stats = time.perf_counter() - start, own.stats
            assert all(bool(each.isfinite().all()) for each in found)
            rows.append(
                {
                    "adjoint": name,
                    "steps": steps,
                    "bytes_saved": stats.bytes_saved,
                    "predicted": stats.predicted,
                    "peak": peak.bytes,
                    "calls": stats.nfe_forward,
                    "seconds": seconds,
                    "norms": [float(g.double().norm()) for g in found[:2]]
                    + [float(sum(g.double().square().sum() for g in found[2:])) ** 0.5],
                }
            )
            print(
                f"{name:30} N = {steps:3}  saved {(stats.bytes_saved or 0) / 2**30:6.2f} GiB  peak "
                f"{peak.bytes / 2**30:6.2f} GiB  {stats.nfe_forward} calls  {seconds:.0f} s",
                flush=True,
            )
            write_record(args.output, "real_size.py", argv, rows=rows)


if __name__ == "__main__":
    main(sys.argv[1:])
