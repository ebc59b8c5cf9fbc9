"""Train the text encoder and the UNet on cached latents, to message v.

x_t = alpha_t x + sigma_t eps and v = alpha_t eps - sigma_t x, the squared error unweighted, the times stratified
over the batch and denser in the middle. Predicting eps was tried first and learned the captions far too late:
at high noise, where the caption decides the picture, eps is nearly the input itself, and the part
of the error that depends on the caption is drowned (the figures are in README.md).

The caption enters twice: by cross-attention at the innermost level, and, pooled, through the time embedding,
which scales and shifts every block (`addition_embed_type="text"`, a stock option of the UNet). The second way
is what makes 234 concepts learnable in an hour.

Both networks keep a moving average of their weights, and that is what gets exported. The latents of
`--cache` renders are encoded once; captions are drawn afresh at each step.
"""

import argparse
from pathlib import Path

import torch
from cache import cached
from checkpoint import Ema, Run, load_modules, process
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from muon import Muon
from render import Renderer, caption, contact_sheet
from tokenizer import MAX_LENGTH, build
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from vae import LATENT_CHANNELS, RUNS, load_trained

__all__ = ["WIDTH", "build_text_encoder", "build_unet", "load_pipeline", "sample"]

WIDTH = 128  # of the text embedding
COLUMNS = ("latents", "concepts", "colours", "styles")


def build_unet() -> UNet2DConditionModel:
    """Three levels (16, 8 and 4 latent pixels wide), cross-attention on the innermost."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        block_out_channels=(64, 128, 128),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
        resnet_time_scale_shift="scale_shift",
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
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


def load_pipeline(runs: Path = RUNS, vae: AutoencoderKL | None = None) -> StableDiffusionPipeline:
    """The averaged weights of the last checkpoints, as a pipeline in float32; `vae` for one trained elsewhere."""
    renderer = Renderer()
    tokenizer = build(renderer)
    unet, text_encoder = Ema(build_unet()), Ema(build_text_encoder(tokenizer))
    path = runs / "diffusion" / "checkpoint.safetensors"
    load_modules(path, {"unet_ema": unet, "text_encoder_ema": text_encoder})
    vae = vae or load_trained(runs / "vae", renderer)
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


def cached_latents(
    vae: AutoencoderKL, renderer: Renderer, seed: int, count: int, folder: Path
) -> dict[str, Tensor]:
    """Latents (float16) and labels of renders 0 to `count` of set `seed`."""

    def make(rows: range) -> dict[str, Tensor]:
        batch = renderer(seed, rows)
        z = vae.encode(2 * batch.images - 1).latent_dist.mean * vae.config.scaling_factor
        return dict(zip(COLUMNS, (z.half(), batch.concepts, batch.colours, batch.styles), strict=True))

    return cached(folder, count, make)


def times(u: Tensor) -> Tensor:
    """Times in [0, 1] from stratified uniform numbers: half of them uniform, half logit-normal.

    The second half lies where the shape of the object is decided (Esser et al., 2024, arXiv 2403.03206).
    """
    middle = torch.special.ndtri(u.clamp(1e-6, 1 - 1e-6)).sigmoid()
    return torch.where(torch.arange(len(u)) % 2 == 0, u, middle)


def caption_ids(tokenizer: CLIPTokenizer, renderer: Renderer) -> Tensor:
    """Token numbers (concepts, colours + 1, styles, length) of every caption; the last colour is none."""
    texts = [
        caption(concept, colour, style)
        for concept in renderer.concepts
        for colour in [*renderer.colours, None]
        for style in renderer.styles
    ]
    ids = tokenizer(texts, padding="max_length", return_tensors="pt").input_ids
    return ids.view(len(renderer.concepts), len(renderer.colours) + 1, len(renderer.styles), -1)


def renumbered(
    start: StableDiffusionPipeline, tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel
) -> dict[str, Tensor]:
    """The package's text encoder, each token's row at its number in this tokenizer."""
    state, name = start.text_encoder.state_dict(), "embeddings.token_embedding.weight"
    key = next(key for key in state if key.endswith(name))
    rows, numbers = text_encoder.state_dict()[key].clone(), start.tokenizer.get_vocab()
    for token, number in tokenizer.get_vocab().items():
        if token in numbers:
            rows[number] = state[key][numbers[token]]
    return {**state, key: rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=4500)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--optimizer", choices=("adamw", "muon"), default="adamw")
    parser.add_argument("--cache", type=int, default=57_344)
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--save_every", type=int, default=100)
    parser.add_argument(
        "--glyphs", type=Path, help="a folder of RGBA pictures to learn instead of the font's"
    )
    parser.add_argument("--runs", type=Path, default=RUNS)
    parser.add_argument(
        "--package",
        type=Path,
        help="a packaged pipeline to go on from; its autoencoder, too, if none was trained here",
    )
    args = parser.parse_args()

    out = args.runs / "diffusion"
    renderer = Renderer(args.glyphs)
    start = (
        StableDiffusionPipeline.from_pretrained(args.package, dtype=torch.float32) if args.package else None
    )
    trained = (args.runs / "vae" / "checkpoint.safetensors").exists()
    vae = start.vae if start and not trained else load_trained(args.runs / "vae", renderer)
    stored = cached_latents(vae, renderer, args.seed, args.cache, out / "latents")
    latents, concepts, colours, styles = (stored[name] for name in COLUMNS)

    torch.manual_seed(args.seed)
    tokenizer = build(renderer)
    ids = caption_ids(tokenizer, renderer)
    empty = tokenizer("", padding="max_length", return_tensors="pt").input_ids[0]
    unet, text_encoder = build_unet(), build_text_encoder(tokenizer)
    if start:
        unet.load_state_dict(start.unet.state_dict())
        text_encoder.load_state_dict(renumbered(start, tokenizer, text_encoder))
    else:
        load_modules(args.runs / "text" / "checkpoint.safetensors", {"text_encoder": text_encoder})
    unet_ema, text_ema = Ema(build_unet()), Ema(build_text_encoder(tokenizer))
    unet_ema.shadow.load_state_dict(unet.state_dict())
    text_ema.shadow.load_state_dict(text_encoder.state_dict())
    modules = {
        "unet": unet.train(),
        "text_encoder": text_encoder.train(),
        "unet_ema": unet_ema,
        "text_encoder_ema": text_ema,
    }
    for module in modules.values():
        module.to(args.device)
    unet.to(memory_format=torch.channels_last)
    weights = [*unet.parameters(), *text_encoder.parameters()]
    if process()[0] == 0:
        spread = [round(s, 3) for s in latents[:4096].float().std((0, 2, 3)).tolist()]
        print(
            f"{len(latents)} latents, spread of the channels {spread}; {sum(p.numel() for p in weights):,} weights"
        )
    if args.optimizer == "muon":
        optimizer = Muon(weights, args.lr)
    else:
        optimizer = torch.optim.AdamW(weights, args.lr, betas=(0.9, 0.99), weight_decay=1e-2, fused=True)
    alphas_cumprod = scheduler().alphas_cumprod
    run = Run(out, args.steps, args.lr, args.seed, save_every=args.save_every, sample_every=500)

    def loss_at(step: int) -> Tensor:
        rows = torch.tensor(run.rows(step, args.batch)) % len(latents)
        x = latents[rows].float()
        u = torch.rand(len(x))
        # 10 % of the captions are empty, for guidance; 10 % leave the background out.
        told = ids[concepts[rows], torch.where(u < 0.2, len(renderer.colours), colours[rows]), styles[rows]]
        told = torch.where((u < 0.1)[:, None], empty, told).to(args.device)
        t = (times((torch.randperm(len(x)) + torch.rand(len(x))) / len(x)) * 1000).long().clamp(max=999)
        signal = alphas_cumprod[t].view(-1, 1, 1, 1)
        eps = torch.randn_like(x)
        noisy = signal.sqrt() * x + (1 - signal).sqrt() * eps
        v = signal.sqrt() * eps - (1 - signal).sqrt() * x
        noisy = noisy.to(args.device).contiguous(memory_format=torch.channels_last)
        with torch.autocast(args.device, torch.bfloat16):
            prediction = unet(noisy, t.to(args.device), text_encoder(told)[0]).sample
        return (prediction.float() - v.to(args.device)).square().mean()

    def after_step(step: int) -> None:
        unet_ema.update(unet, step)
        text_ema.update(text_encoder, step)

    prompts = [
        caption(
            renderer.concepts[7 * i % len(renderer.concepts)],
            renderer.colours[i % 10],
            renderer.styles[max(0, i % 14 - 7)],
        )
        for i in range(32)
    ]

    def preview(step: int) -> None:
        pipe = assemble(vae.to(args.device), text_ema.shadow, tokenizer, unet_ema.shadow)
        contact_sheet(sample(pipe, prompts, list(range(32))), out / f"{step:05d}.png", columns=16)

    run.train(loss_at, modules, optimizer, after_step, preview)


if __name__ == "__main__":
    main()
