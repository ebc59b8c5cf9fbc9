"""Train the autoencoder (64 x 64 x 3 to 16 x 16 x 8), then normalize its latents.

loss = |e| + |e|^2 + |grad e| / 2 + log(|e|^2) / 20 + w KL with e = x_hat - x; the logarithm picture by picture
(it is the PSNR that is reported), the KL a mean over latent elements. The gradient term (finite differences)
is what makes thin outlines sharp. After training, the latents' mean and
relative spread of each channel are folded into `quant_conv` and `post_quant_conv`, so that the one
number `scaling_factor` brings them to zero mean and unit variance.

`--decoder A` trains the decoder alone, on latents with noise of up to A times their spread, so that it mends what
a diffusion model leaves imperfect; latents, and models of them, stay what they are.
"""

import argparse
from pathlib import Path

import torch
from checkpoint import Run, load_modules
from diffusers import AutoencoderKL
from render import Renderer, contact_sheet, psnr
from torch import Tensor

__all__ = ["HELD_OUT", "LATENT_CHANNELS", "RUNS", "build", "load_trained", "normalize", "reconstruct"]

RUNS = Path(__file__).parent / "runs"
LATENT_CHANNELS = 8
HELD_OUT = 900_001  # seed of the pictures no training uses


def build() -> AutoencoderKL:
    """An untrained autoencoder: 8 latent channels at a quarter of the picture's width."""
    return AutoencoderKL(
        sample_size=64,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 64, 128),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        mid_block_add_attention=False,
        force_upcast=False,
    )


def load_trained(folder: Path, renderer: Renderer) -> AutoencoderKL:
    """The checkpoint's autoencoder, its latents normalized."""
    vae = build().eval().requires_grad_(False)
    load_modules(folder / "checkpoint.safetensors", {"vae": vae})
    normalize(vae, renderer(1, range(1024)).images)
    return vae


@torch.no_grad()
def normalize(vae: AutoencoderKL, images: Tensor) -> None:
    """Fold the latents' channel means and relative spreads into the 1 x 1 convolutions, in place.

    z' = (z - m) r with r = mean spread / channel spread, undone before the decoder; then
    scaling_factor = 1 / mean spread.
    """
    z = torch.cat([vae.encode(2 * x - 1).latent_dist.mean for x in images.split(64)])
    mean, spread = z.mean((0, 2, 3)), z.std((0, 2, 3))
    ratio = spread.mean() / spread
    quant, post = vae.quant_conv, vae.post_quant_conv
    channels = len(mean)
    post.bias += post.weight[:, :, 0, 0] @ mean
    post.weight /= ratio[None, :, None, None]
    quant.bias[:channels] = (quant.bias[:channels] - mean) * ratio
    quant.weight[:channels] *= ratio[:, None, None, None]
    quant.bias[channels:] += 2 * ratio.log()  # the log-variance of the scaled latent
    vae.register_to_config(scaling_factor=round(1 / float(spread.mean()), 6))


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Images in [0, 1] through the posterior's mean and back."""
    decoded = [vae.decode(vae.encode(2 * x - 1).latent_dist.mean).sample for x in images.split(64)]
    return (torch.cat(decoded).float() / 2 + 0.5).clamp(0, 1)


def loss(vae: AutoencoderKL, images: Tensor, kl_weight: float, noise: float | None = None) -> Tensor:
    x = (2 * images - 1).contiguous(memory_format=torch.channels_last)
    with torch.autocast(images.device.type, torch.bfloat16):
        with torch.set_grad_enabled(noise is None):
            posterior = vae.encode(x).latent_dist
        z = posterior.sample()
        if noise is not None:
            spread = noise * torch.rand(len(z), 1, 1, 1, device=z.device) / vae.config.scaling_factor
            z = z + spread * torch.randn_like(z)
        decoded = vae.decode(z).sample
    error = decoded.float() - x
    gradient = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    kl = posterior.kl().float().mean() / posterior.mean[0].numel()
    square = error.square().mean((1, 2, 3))
    log = (square + 1e-4).log().mean()
    return error.abs().mean() + square.mean() + 0.5 * gradient + 0.05 * log + kl_weight * kl


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=4800)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=8e-4)
    parser.add_argument("--kl", type=float, default=2e-4)
    parser.add_argument("--decoder", type=float, help="train the decoder alone, on latents with this noise")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--save_every", type=int, default=100)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--glyphs", type=Path, help="a folder of RGBA pictures instead of the font's")
    parser.add_argument("--runs", type=Path, default=RUNS)
    parser.add_argument("--package", type=Path, help="a packaged pipeline whose autoencoder to go on from")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    renderer = Renderer(args.glyphs)
    vae = build()
    if args.package:
        packaged = AutoencoderKL.from_pretrained(args.package, subfolder="vae", dtype=torch.float32)
        vae.load_state_dict(packaged.state_dict())
        vae.register_to_config(scaling_factor=packaged.config.scaling_factor)
    vae = vae.to(args.device, memory_format=torch.channels_last)
    if args.decoder is not None:
        for part in (vae.encoder, vae.quant_conv):
            part.requires_grad_(False)
    trained = [weight for weight in vae.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, args.lr, betas=(0.9, 0.99), weight_decay=1e-3)
    held_out = renderer(HELD_OUT, range(128)).images

    def loss_at(step: int) -> Tensor:
        batch = renderer(args.seed, run.rows(step, args.batch))
        return loss(vae, batch.images.to(args.device), args.kl, args.decoder)

    def sample(step: int) -> None:
        decoded = reconstruct(vae, held_out.to(args.device)).cpu()
        print(f"\nstep {step}: PSNR {psnr(decoded, held_out):.2f} dB", flush=True)
        pairs = torch.stack([held_out[:32], decoded[:32]], 1).flatten(0, 1)
        contact_sheet(pairs, run.folder / f"{step:05d}.png", columns=16, scale=1)

    run = Run(args.runs / "vae", args.steps, args.lr, args.seed, save_every=args.save_every)
    run.train(loss_at, {"vae": vae}, optimizer, sample=sample)


if __name__ == "__main__":
    main()
