"""Train the small ResNet that names the concept of a picture.

Three quarters of a batch are fresh renders, one quarter are decoded latents of the diffusion's
cache with a little noise added, so that what the autoencoder does to a picture is in its domain.
Augmentation: shifts, contrast and brightness, blur, noise. Pictures enter scaled to [-1, 1].
"""

import argparse
from pathlib import Path

import torch
from checkpoint import Run, load_modules
from render import Renderer
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional
from transformers import ResNetConfig, ResNetForImageClassification
from vae import HELD_OUT, RUNS, load_trained, reconstruct

__all__ = ["accuracy", "build_classifier", "load_classifier"]


def build_classifier(concepts: list[str]) -> ResNetForImageClassification:
    """An untrained ResNet of basic blocks, 1.6 M weights, one label a concept."""
    config = ResNetConfig(
        num_channels=3,
        embedding_size=40,
        hidden_sizes=[40, 80, 144, 208],
        depths=[1, 2, 2, 1],
        layer_type="basic",
        id2label=dict(enumerate(concepts)),
        label2id={concept: number for number, concept in enumerate(concepts)},
    )
    return ResNetForImageClassification(config)


def load_classifier(runs: Path = RUNS) -> ResNetForImageClassification:
    """The classifier of the last checkpoint."""
    model = build_classifier(Renderer().concepts).eval()
    load_modules(runs / "classifier" / "checkpoint.safetensors", {"classifier": model})
    return model


@torch.no_grad()
def accuracy(model: ResNetForImageClassification, images: Tensor, concepts: Tensor) -> float:
    """Share of the images (in [0, 1]) whose first choice is right."""
    guesses = [model(2 * part - 1).logits.argmax(1) for part in images.split(64)]
    return float((torch.cat(guesses) == concepts).float().mean())


def augment(images: Tensor) -> Tensor:
    """Shift by up to 4 pixels, change contrast and brightness, blur or add noise to some."""
    count, _, height, width = images.shape
    padded = functional.pad(images, (4, 4, 4, 4), mode="replicate")
    corners = torch.randint(0, 9, (count, 2)).tolist()
    images = torch.stack(
        [x[:, i : i + height, j : j + width] for x, (i, j) in zip(padded, corners, strict=True)]
    )
    u = torch.rand(4, count, 1, 1, 1)
    blurred = functional.avg_pool2d(functional.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    images = torch.lerp(images, blurred, (2 * u[0] - 1).clamp(0, 1))
    images = (images - 0.5) * (0.85 + 0.3 * u[1]) + 0.5 + 0.1 * (2 * u[2] - 1)
    return (images + 0.06 * (2 * u[3] - 1).clamp(0, 1) * torch.randn_like(images)).clamp(0, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--runs", type=Path, default=RUNS)
    args = parser.parse_args()

    renderer = Renderer()
    vae = load_trained(args.runs / "vae")
    cached = load_file(args.runs / "diffusion" / "latents.safetensors")
    latents, labels = cached["latents"], cached["concepts"]
    decoded_count = args.batch // 4
    rendered_count = args.batch - decoded_count
    torch.manual_seed(args.seed)
    model = build_classifier(renderer.concepts).train()
    optimizer = torch.optim.AdamW(model.parameters(), args.lr, weight_decay=0.02, fused=True)
    held_out = renderer(HELD_OUT, range(512))
    decoded_held_out = reconstruct(vae, held_out.images)

    @torch.no_grad()
    def decode(rows: Tensor) -> Tensor:
        z = latents[rows].float()
        z = z + 0.15 * torch.rand(len(z), 1, 1, 1) * torch.randn_like(z)
        return (vae.decode(z / vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)

    def loss_at(step: int) -> Tensor:
        batch = renderer(args.seed, range(step * rendered_count, (step + 1) * rendered_count))
        rows = torch.arange(step * decoded_count, (step + 1) * decoded_count) % len(latents)
        images = augment(torch.cat([batch.images, decode(rows)]))
        target = torch.cat([batch.concepts, labels[rows]])
        return functional.cross_entropy(model(2 * images - 1).logits, target, label_smoothing=0.05)

    def report(step: int) -> None:
        model.eval()
        fresh = accuracy(model, held_out.images, held_out.concepts)
        decoded = accuracy(model, decoded_held_out, held_out.concepts)
        print(f"\nstep {step}: top-1 {fresh:.3f} on renders, {decoded:.3f} decoded", flush=True)
        model.train()

    run = Run(args.runs / "classifier", args.steps, args.lr, args.seed)
    run.train(loss_at, {"classifier": model}, optimizer, sample=report)


if __name__ == "__main__":
    main()
