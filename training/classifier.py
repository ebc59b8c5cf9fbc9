"""Train one of the classifiers: four of concepts to be audited, and the judges of concept, colour and style.

The judge has an architecture, a data seed and an augmentation of its own, and serves measurement alone: it is
never a target, and never part of a loss. Pictures enter scaled to [-1, 1]. None of the classifiers sees the
autoencoder or the diffusion model.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from cache import cached
from checkpoint import Run, load_modules, process
from muon import Muon
from render import SIZE, Batch, Renderer
from torch import Tensor, nn
from torch.nn import functional
from vae import HELD_OUT, RUNS

__all__ = ["KINDS", "accuracy", "load_classifier"]


def colour_shift(images: Tensor) -> Tensor:
    """Shift by up to 4 pixels, change contrast and brightness, blur or add noise to some."""
    images = shift(images, 4)
    u = torch.rand(4, len(images), 1, 1, 1)
    blurred = functional.avg_pool2d(functional.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    images = torch.lerp(images, blurred, (2 * u[0] - 1).clamp(0, 1))
    images = (images - 0.5) * (0.85 + 0.3 * u[1]) + 0.5 + 0.1 * (2 * u[2] - 1)
    return images + 0.06 * (2 * u[3] - 1).clamp(0, 1) * torch.randn_like(images)


def bend(images: Tensor) -> Tensor:
    """The judge's: a small affine map, its resampling included, and a square of 14 pixels greyed out."""
    count = len(images)
    theta = torch.eye(2, 3).repeat(count, 1, 1)
    theta[:, :, :2] += 0.10 * (2 * torch.rand(count, 2, 2) - 1)
    theta[:, :, 2] = 0.06 * (2 * torch.rand(count, 2) - 1)
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    images = functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
    place = torch.arange(SIZE)
    y, x = (((place - torch.randint(-14, SIZE, (count, 1))) // 14 == 0) for _ in range(2))
    hidden = (y[:, :, None] & x[:, None, :])[:, None]
    return torch.where(hidden, 0.5, images) + 0.03 * torch.rand(count, 1, 1, 1) * torch.randn_like(images)


def half_bent(images: Tensor) -> Tensor:
    """The style judge's: half as the judge's; half only shifted, softened, with fine and coarse noise.

    Resampling alone would blur squares and strokes, and clean renders alone make it take the least unevenness
    within a square for a plain picture.
    """
    count = len(images)
    u = torch.rand(3, count, 1, 1, 1)
    soft = functional.avg_pool2d(functional.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    coarse = functional.interpolate(torch.randn(count, 3, 16, 16), scale_factor=SIZE // 16, mode="bilinear")
    worn = (
        torch.lerp(images, soft, 0.5 * u[0]) + 0.06 * u[1] * torch.randn_like(images) + 0.08 * u[2] * coarse
    )
    return torch.where(torch.rand(count, 1, 1, 1) < 0.5, bend(images), shift(worn))


def shift(images: Tensor, most: int = 2) -> Tensor:
    """Shift by up to `most` pixels: what colours and styles may be changed by."""
    padded = functional.pad(images, (most,) * 4, mode="replicate")
    corners = torch.randint(0, 2 * most + 1, (len(images), 2)).tolist()
    return torch.stack(
        [x[:, i : i + SIZE, j : j + SIZE] for x, (i, j) in zip(padded, corners, strict=True)]
    )


def resnet(**labels: Any) -> nn.Module:
    """Basic blocks, 1.6 M weights."""
    sizes = {"embedding_size": 40, "hidden_sizes": [40, 80, 144, 208], "depths": [1, 2, 2, 1]}
    return tf.ResNetForImageClassification(tf.ResNetConfig(**sizes, layer_type="basic", **labels))


def style_resnet(**labels: Any) -> nn.Module:
    """For styles: 0.4 M weights."""
    sizes = {"embedding_size": 32, "hidden_sizes": [32, 64, 128], "depths": [1, 1, 1]}
    return tf.ResNetForImageClassification(tf.ResNetConfig(**sizes, layer_type="basic", **labels))


def small_resnet(**labels: Any) -> nn.Module:
    """For colours: 0.1 M weights."""
    sizes = {"embedding_size": 24, "hidden_sizes": [24, 32, 64], "depths": [1, 1, 1]}
    return tf.ResNetForImageClassification(tf.ResNetConfig(**sizes, layer_type="basic", **labels))


def hgnet(**labels: Any) -> nn.Module:
    """Blocks that gather the results of three convolutions each (HGNet V2)."""
    stages = {
        "stage_in_channels": [32, 96, 160],
        "stage_mid_channels": [32, 56, 88],
        "stage_out_channels": [96, 160, 256],
        "stage_num_blocks": [1, 1, 1],
        "stage_downsample": [False, True, True],
        "stage_light_block": [False, False, False],
        "stage_kernel_size": [3, 3, 3],
        "stage_numb_of_layers": [3, 3, 3],
    }
    sizes = {"embedding_size": 32, "depths": [1, 1, 1], "hidden_sizes": [96, 160, 256]}
    config = tf.HGNetV2Config(**sizes, **stages, stem_channels=[3, 24, 32], **labels)
    return tf.HGNetV2ForImageClassification(config)


def bit(**labels: Any) -> nn.Module:
    """A residual network with group normalization before activation, its weights standardised (Big Transfer)."""
    sizes = {"embedding_size": 32, "hidden_sizes": [64, 128, 256], "depths": [1, 2, 1], "num_groups": 8}
    config = tf.BitConfig(**sizes, layer_type="preactivation", global_padding="same", **labels)
    return tf.BitForImageClassification(config)


def poolformer(**labels: Any) -> nn.Module:
    """A transformer whose attention is average pooling."""
    stages = {"hidden_sizes": [48, 96, 176], "depths": [1, 2, 2], "num_encoder_blocks": 3}
    patches = {"patch_sizes": [4, 3, 3], "strides": [4, 2, 2], "padding": [0, 1, 1]}
    rates = {"mlp_ratio": 3.0, "drop_path_rate": 0.0, "layer_scale_init_value": 0.1}
    return tf.PoolFormerForImageClassification(tf.PoolFormerConfig(**stages, **patches, **rates, **labels))


def regnet(**labels: Any) -> nn.Module:
    """Grouped convolutions with squeeze and excitation: the judge."""
    sizes = {
        "embedding_size": 32,
        "hidden_sizes": [48, 96, 176, 256],
        "depths": [1, 2, 3, 1],
        "groups_width": 16,
    }
    return tf.RegNetForImageClassification(tf.RegNetConfig(**sizes, layer_type="y", **labels))


@dataclass(frozen=True)
class Kind:
    """How one classifier is built and trained; `names` says what it tells apart."""

    build: Callable[..., nn.Module]
    names: str
    augment: Callable[[Tensor], Tensor]
    data_seed: int
    steps: int
    lr: float


KINDS = {
    "resnet": Kind(resnet, "concepts", colour_shift, 3, 1000, 2e-3),
    "hgnet": Kind(hgnet, "concepts", colour_shift, 3, 1200, 2e-3),
    "bit": Kind(bit, "concepts", colour_shift, 3, 1200, 2e-3),
    "poolformer": Kind(poolformer, "concepts", colour_shift, 3, 1500, 2e-3),
    "judge": Kind(regnet, "concepts", bend, 7, 3400, 2e-3),
    "judge-colour": Kind(small_resnet, "colours", shift, 7, 1000, 2e-3),
    "judge-style": Kind(style_resnet, "styles", half_bent, 7, 2400, 2e-3),
}


def build_classifier(kind: Kind, renderer: Renderer) -> nn.Module:
    """An untrained classifier with its labels."""
    names: list[str] = getattr(renderer, kind.names)
    labels = {name: number for number, name in enumerate(names)}
    return kind.build(id2label=dict(enumerate(names)), label2id=labels)


def load_classifier(name: str, renderer: Renderer, runs: Path = RUNS) -> nn.Module:
    """The classifier of the last checkpoint."""
    model = build_classifier(KINDS[name], renderer).eval()
    load_modules(runs / name / "checkpoint.safetensors", {"classifier": model})
    return model


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of the images (in [0, 1]) whose first choice is right."""
    guesses = [model(2 * part - 1).logits.argmax(1) for part in images.split(64)]
    return float((torch.cat(guesses) == labels).float().mean())


def labels_of(batch: Batch, kind: Kind) -> Tensor:
    """The labels that this kind tells apart."""
    return getattr(batch, kind.names)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=list(KINDS))
    parser.add_argument("--steps", type=int)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--optimizer", choices=("adamw", "muon"), default="adamw")
    parser.add_argument("--cache", type=int, default=40_960)
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--save_every", type=int, default=100)
    parser.add_argument("--glyphs", type=Path, help="a folder of RGBA pictures instead of the font's")
    parser.add_argument("--runs", type=Path, default=RUNS)
    parser.add_argument("--package", type=Path, help="a packaged classifier of this kind to go on from")
    args = parser.parse_args()

    kind = KINDS[args.name]
    renderer = Renderer(args.glyphs)

    def make(rows: range) -> dict[str, Tensor]:
        batch = renderer(kind.data_seed, rows)
        pixels = (batch.images * 255).round().byte()
        return {"images": pixels, **{n: getattr(batch, n) for n in ("concepts", "colours", "styles")}}

    stored = cached(args.runs / f"pictures-{kind.data_seed}", args.cache, make)
    pictures, labels = stored["images"], stored[kind.names]
    torch.manual_seed(args.seed)
    model = build_classifier(kind, renderer)
    if args.package:
        packaged = tf.AutoModelForImageClassification.from_pretrained(args.package, dtype=torch.float32)
        model.load_state_dict(packaged.state_dict())
    model.train().to(args.device, memory_format=torch.channels_last)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    if args.optimizer == "muon":
        optimizer: torch.optim.Optimizer = Muon(model.parameters(), kind.lr)
    else:
        optimizer = torch.optim.AdamW(groups, kind.lr, fused=True)
    held_out = renderer(HELD_OUT, range(512))
    run = Run(
        args.runs / args.name,
        args.steps or kind.steps,
        kind.lr,
        args.seed,
        save_every=args.save_every,
        sample_every=500,
    )
    if process()[0] == 0:
        print(f"{args.name}: {sum(p.numel() for p in model.parameters()):,} weights")

    def loss_at(step: int) -> Tensor:
        # Every pass over the pictures has an order of its own.
        at = torch.tensor(run.rows(step, args.batch))
        orders = torch.Generator().manual_seed(int(at[0]) // len(pictures))
        rows = torch.randperm(len(pictures), generator=orders)[at % len(pictures)]
        images = kind.augment(pictures[rows].float() / 255).clamp(0, 1)
        images = (2 * images - 1).to(args.device).contiguous(memory_format=torch.channels_last)
        with torch.autocast(args.device, torch.bfloat16):
            logits = model(images).logits
        return functional.cross_entropy(logits.float(), labels[rows].to(args.device), label_smoothing=0.05)

    def report(step: int) -> None:
        model.eval()
        right = accuracy(model, held_out.images.to(args.device), labels_of(held_out, kind).to(args.device))
        print(f"\nstep {step}: top-1 {right:.3f} on fresh renders", flush=True)
        model.train()

    run.train(loss_at, {"classifier": model}, optimizer, sample=report)


if __name__ == "__main__":
    main()
