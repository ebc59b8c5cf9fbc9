"""Train the text encoder and the UNet on cached latents, to predict v.

x_t = alpha_t x + sigma_t eps and v = alpha_t eps - sigma_t x, the times stratified over the batch,
the squared error unweighted. Predicting eps was tried first and learned the captions far too late:
at high noise, where the caption decides the picture, eps is nearly the input itself, and the part
of the error that depends on the caption is drowned (the figures are in README.md).

Both networks keep a moving average of their weights, and that is what gets exported. The latents of
`--cache` renders are encoded once; captions are drawn afresh at each step.
"""

import argparse
from pathlib import Path

import torch
from checkpoint import Ema, Run, load_modules
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from render import Renderer, caption, contact_sheet
from safetensors.torch import load_file, save_file
from tokenizer import MAX_LENGTH, build
from torch import Tensor
from tqdm import tqdm
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from vae import RUNS, load_trained

__all__ = ["WIDTH", "build_text_encoder", "build_unet", "load_pipeline", "sample"]

WIDTH = 128  # of the text embedding


def build_unet() -> UNet2DConditionModel:
    """Three levels (16, 8 and 4 latent pixels wide), cross-attention on the inner two."""
    return UNet2DConditionModel(
        sample_size=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(64, 96, 128),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """A small text encoder; it is trained from scratch together with the UNet."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=MAX_LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def scheduler() -> DDIMScheduler:
    """Stable Diffusion's schedule; nothing clipped, so that every sampler has a gradient."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
    )


def assemble(
    vae: AutoencoderKL,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    unet: UNet2DConditionModel,
) -> StableDiffusionPipeline:
    """The parts as a stock pipeline, without a safety checker."""
    pipe = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def load_pipeline(runs: Path = RUNS) -> StableDiffusionPipeline:
    """The averaged weights of the last checkpoints, as a pipeline in float32."""
    tokenizer = build(Renderer().concepts)
    unet, text_encoder = Ema(build_unet()), Ema(build_text_encoder(tokenizer))
    path = runs / "diffusion" / "checkpoint.safetensors"
    load_modules(path, {"unet_ema": unet, "text_encoder_ema": text_encoder})
    vae = load_trained(runs / "vae")
    return assemble(vae, text_encoder.shadow, tokenizer, unet.shadow)


def sample(
    pipe: StableDiffusionPipeline, prompts: list[str], seeds: list[int], guidance: float = 4.0
) -> Tensor:
    """25 steps of DPM-Solver++(2M): pictures (B, 3, 64, 64) in [0, 1], each from its own seed."""
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    images = []
    for start in range(0, len(prompts), 32):
        part = slice(start, start + 32)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds[part]]
        images.append(
            pipe(
                prompts[part],
                num_inference_steps=25,
                guidance_scale=guidance,
                generator=generators,
                output_type="pt",
            ).images
        )
    pipe.scheduler = scheduler()
    return torch.cat(images).float()


@torch.no_grad()
def cache_latents(vae: AutoencoderKL, renderer: Renderer, seed: int, count: int, path: Path) -> None:
    """Encode renders 0 to `count` of set `seed` once, as float16 at `path`."""
    latents, concepts, colours = [], [], []
    for start in tqdm(range(0, count, 64), mininterval=5, desc="latents"):
        batch = renderer(seed, range(start, min(count, start + 64)))
        z = vae.encode(2 * batch.images - 1).latent_dist.mean * vae.config.scaling_factor
        latents.append(z.half())
        concepts.append(batch.concepts)
        colours.append(batch.colours)
    tensors = {"latents": latents, "concepts": concepts, "colours": colours}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: torch.cat(parts) for name, parts in tensors.items()}, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=3100)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--cache", type=int, default=24_000)
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--vae", type=Path, default=RUNS / "vae")
    parser.add_argument("--text", type=Path, default=RUNS / "text" / "checkpoint.safetensors")
    parser.add_argument("--unet", type=Path, help="checkpoint to take the UNet's first weights from")
    parser.add_argument("--out", type=Path, default=RUNS / "diffusion")
    args = parser.parse_args()

    renderer = Renderer()
    vae = load_trained(args.vae)
    store = args.out / "latents.safetensors"
    if not store.exists():
        cache_latents(vae, renderer, args.seed, args.cache, store)
    cached = load_file(store)
    latents, concepts, colours = (cached[key] for key in ("latents", "concepts", "colours"))
    spread = latents[:4096].float().std((0, 2, 3)).tolist()
    print(f"{len(latents)} latents, spread of the channels {[round(s, 3) for s in spread]}")

    torch.manual_seed(args.seed)
    tokenizer = build(renderer.concepts)
    unet, text_encoder = build_unet(), build_text_encoder(tokenizer)
    load_modules(args.text, {"text_encoder": text_encoder})
    if args.unet:
        load_modules(args.unet, {"unet": unet})
    unet_ema, text_ema = Ema(build_unet()), Ema(build_text_encoder(tokenizer))
    unet_ema.shadow.load_state_dict(unet.state_dict())
    text_ema.shadow.load_state_dict(text_encoder.state_dict())
    unet.train()
    text_encoder.train()
    weights = [*unet.parameters(), *text_encoder.parameters()]
    print(f"{sum(p.numel() for p in weights):,} weights")
    optimizer = torch.optim.AdamW(weights, args.lr, betas=(0.9, 0.99), weight_decay=1e-2, fused=True)
    alphas_cumprod = scheduler().alphas_cumprod

    def loss_at(step: int) -> Tensor:
        rows = torch.arange(step * args.batch, (step + 1) * args.batch) % len(latents)
        x = latents[rows].float()
        texts = [
            caption(renderer.concepts[concept], renderer.colours[colour], u)
            for concept, colour, u in zip(
                concepts[rows].tolist(),
                colours[rows].tolist(),
                torch.rand(len(x)).tolist(),
                strict=True,
            )
        ]
        ids = tokenizer(texts, padding="max_length", return_tensors="pt").input_ids
        t = ((torch.randperm(len(x)) + torch.rand(len(x))) / len(x) * 1000).long()
        signal = alphas_cumprod[t].view(-1, 1, 1, 1)
        eps = torch.randn_like(x)
        noisy = signal.sqrt() * x + (1 - signal).sqrt() * eps
        prediction = unet(noisy, t, text_encoder(ids)[0]).sample
        v = signal.sqrt() * eps - (1 - signal).sqrt() * x
        return (prediction - v).square().mean()

    def after_step(step: int) -> None:
        unet_ema.update(unet, step)
        text_ema.update(text_encoder, step)

    prompts = [
        caption(renderer.concepts[(7 * i) % len(renderer.concepts)], renderer.colours[i % 10], 0.9)
        for i in range(32)
    ]

    def preview(step: int) -> None:
        pipe = assemble(vae, text_ema.shadow, tokenizer, unet_ema.shadow)
        images = sample(pipe, prompts, list(range(32)))
        contact_sheet(images, args.out / f"{step:05d}.png", columns=16)

    run = Run(args.out, args.steps, args.lr, args.seed, sample_every=250)
    modules = {
        "unet": unet,
        "text_encoder": text_encoder,
        "unet_ema": unet_ema,
        "text_encoder_ema": text_ema,
    }
    run.train(loss_at, modules, optimizer, after_step, preview)


if __name__ == "__main__":
    main()
