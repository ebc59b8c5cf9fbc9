"""Train the preference reward, or the one that judges it, by a Bradley-Terry model on pairs of renders.

The rule gives a render five marks between 0 and 1, and their sum is its quality q:

    size        its share s of the frame's side, from 0.3 (0) to 0.95 (1)
    whole       1 - 2 h, h the part of the glyph's width or height that the frame cuts off, whichever is more
    centred     1 - d / 0.6, d the larger of its distances from the centre, in half sides of the frame
    sharp       1 - b / 2.5, b the deviation in pixels of a Gaussian blur over the whole image
    saturated   1 - p / 0.75, p the share of a light gray that is mixed in

Four renders with one caption make six pairs. Of a pair, raters prefer a with probability 1 / (1 + exp(-4 (q_a - q_b))),
and the network's number r is fitted to infinitely many of them:

    P(a over b) = 1 / (1 + exp(-(r_a - r_b)))

The judge has another architecture, other seeds and other renders, and serves measurement alone: it is never part of a
loss.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from cache import cached
from checkpoint import Ema, Run, load_modules, process
from muon import Muon
from render import Renderer
from styles import SHARES
from torch import Tensor, nn
from torch.nn import functional
from vae import RUNS

__all__ = ["FRESH", "KINDS", "agreement", "load_trained_preference", "quality", "rated"]

GROUP = 4  # renders with one caption
SHARPNESS = 4.0  # of the raters
BLUR, PALE, AWAY = 2.5, 0.75, 0.6  # the most of each defect
GRAY = 0.8
FRESH = 900_004  # seed of the pairs no training uses


def hgnet(**labels: Any) -> nn.Module:
    """Blocks that gather the results of three convolutions each (HGNet V2), 0.2 M weights."""
    stages = {
        "stage_in_channels": [24, 48, 80],
        "stage_mid_channels": [24, 32, 48],
        "stage_out_channels": [48, 80, 128],
        "stage_num_blocks": [1, 1, 1],
        "stage_downsample": [False, True, True],
        "stage_light_block": [False, False, False],
        "stage_kernel_size": [3, 3, 3],
        "stage_numb_of_layers": [3, 3, 3],
    }
    sizes = {"embedding_size": 24, "depths": [1, 1, 1], "hidden_sizes": [48, 80, 128]}
    config = tf.HGNetV2Config(**sizes, **stages, stem_channels=[3, 16, 24], **labels)
    return tf.HGNetV2ForImageClassification(config)


def regnet(**labels: Any) -> nn.Module:
    """Grouped convolutions with squeeze and excitation, 0.2 M weights: the judge."""
    sizes = {"embedding_size": 24, "hidden_sizes": [32, 64, 112], "depths": [1, 2, 2], "groups_width": 16}
    return tf.RegNetForImageClassification(tf.RegNetConfig(**sizes, layer_type="y", **labels))


@dataclass(frozen=True)
class Kind:
    """How one network is built and trained."""

    build: Callable[..., nn.Module]
    data_seed: int
    seed: int
    steps: int = 500
    lr: float = 2e-3


KINDS = {"preference": Kind(hgnet, 23, 23), "judge-preference": Kind(regnet, 29, 29, steps=300)}


def build_preference(kind: Kind) -> nn.Module:
    """An untrained network with one number for an image."""
    return kind.build(id2label={0: "preference"}, label2id={"preference": 0}, problem_type="regression")


def load_trained_preference(name: str, runs: Path = RUNS) -> nn.Module:
    """The moving average of the last checkpoint."""
    ema = Ema(build_preference(KINDS[name]))
    load_modules(runs / name / "checkpoint.safetensors", {"average": ema})
    return ema.shadow


def quality(size: Tensor, place: Tensor, blur: Tensor, pale: Tensor) -> Tensor:
    """The rule: q of renders with these sizes (B,), places (B, 2), blurs (B,) and paleness (B,)."""
    away = place.abs().amax(1)
    hidden = (away + size - 1).clamp(min=0) / (2 * size)
    marks = [(size - 0.3) / 0.65, 1 - 2 * hidden, 1 - away / AWAY, 1 - blur / BLUR, 1 - pale / PALE]
    return torch.stack(marks).sum(0)


def rated(renderer: Renderer, seed: int, rows: range) -> dict[str, Tensor]:
    """Renders `rows` of the endless set `seed`, (B, 3, 64, 64) in 8 bits, and their quality.

    Each group has one caption. Each defect is absent in every second render on average.
    """
    groups = range(rows.start // GROUP, rows.stop // GROUP)
    draws = torch.Generator().manual_seed(seed * 1_000_003 + rows.start)
    shares = torch.tensor([SHARES[name] for name in renderer.styles])

    def alike(values: Tensor) -> Tensor:
        return values.repeat_interleave(GROUP, 0)

    concepts = alike(torch.tensor([group % len(renderer.concepts) for group in groups]))
    colours = alike(torch.randint(len(renderer.colours), (len(groups),), generator=draws))
    styles = alike(torch.multinomial(shares, len(groups), replacement=True, generator=draws))
    jitter = alike(torch.rand(len(groups), 3, generator=draws))
    u = torch.rand(len(rows), 5, generator=draws)
    defect = (2 * torch.rand(len(rows), 4, generator=draws) - 1).clamp(min=0)
    size, blur, pale = 0.95 - 0.65 * defect[:, 0], BLUR * defect[:, 1], PALE * defect[:, 2]
    across = 2 * u[:, 1:3] - 1
    kept = torch.rand(len(rows), 2, generator=draws) < 0.5  # the others are as far away as the defect says
    place = AWAY * defect[:, 3:] * torch.where(kept, across, across.sign())
    placed = torch.stack(
        [(size - 0.6) / 0.35, u[:, 0], *((each / (1 - size) + 1) / 2 for each in place.T)], 1
    )
    images = renderer.draw(concepts, colours, styles, torch.cat([jitter, placed], 1)).images
    images = torch.lerp(softened(images, blur), torch.tensor(GRAY), pale[:, None, None, None])
    return {"images": (images * 255).round().byte(), "quality": quality(size, place, blur, pale)}


def softened(images: Tensor, deviations: Tensor) -> Tensor:
    """A Gaussian blur of each image's own deviation in pixels."""
    offsets = torch.arange(-6, 7)
    weights = torch.softmax(-0.5 * (offsets / deviations[:, None].clamp(min=0.05)).square(), 1)
    weights = weights.repeat_interleave(3, 0)
    count, side = len(weights), images.shape[-1]
    padded = functional.pad(images, (6, 6, 6, 6), mode="replicate").view(1, count, side + 12, side + 12)
    across = functional.conv2d(padded, weights[:, None, None, :], groups=count)
    return functional.conv2d(across, weights[:, None, :, None], groups=count).view(images.shape)


def preferred(r: Tensor, q: Tensor) -> Tensor:
    """The cross-entropy of raters' choices in the pairs of each group, (B,) numbers and (B,) qualities."""
    i, j = torch.triu_indices(GROUP, GROUP, 1)
    r, q = r.view(-1, GROUP), q.view(-1, GROUP)
    chosen = torch.sigmoid(SHARPNESS * (q[:, i] - q[:, j]))
    return functional.binary_cross_entropy_with_logits(r[:, i] - r[:, j], chosen)


def agreement(r: Tensor, q: Tensor) -> dict[str, float]:
    """How often numbers r prefer what qualities q do, both (B,): over the first pair of each group, and the clear ones.

    A pair is clear where the qualities differ by 0.5 at least, half a mark.
    """
    (r_a, r_b), (q_a, q_b) = (each.view(-1, GROUP)[:, :2].T for each in (r, q))
    right = ((q_a > q_b) == (r_a > r_b)).float()
    clear = (q_a - q_b).abs() >= 0.5
    return {"all pairs": float(right.mean()), "clear pairs": float(right[clear].mean())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=list(KINDS))
    parser.add_argument("--steps", type=int)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--cache", type=int, default=16_384)
    parser.add_argument("--save_every", type=int, default=100)
    parser.add_argument("--glyphs", type=Path, help="a folder of RGBA pictures instead of the font's")
    parser.add_argument("--runs", type=Path, default=RUNS)
    args = parser.parse_args()

    kind, renderer = KINDS[args.name], Renderer(args.glyphs)

    def make(rows: range) -> dict[str, Tensor]:
        return rated(renderer, kind.data_seed, rows)

    stored = cached(args.runs / f"rated-{kind.data_seed}", args.cache, make)
    fresh = cached(args.runs / "rated-held-out", 1024, lambda rows: rated(renderer, FRESH + 1, rows))
    torch.manual_seed(kind.seed)
    model = build_preference(kind).train().to(memory_format=torch.channels_last)
    average = Ema(build_preference(kind))
    run = Run(
        args.runs / args.name,
        args.steps or kind.steps,
        kind.lr,
        kind.seed,
        save_every=args.save_every,
        sample_every=100,
    )
    if process()[0] == 0:
        print(f"{args.name}: {sum(p.numel() for p in model.parameters()):,} weights")

    def loss_at(step: int) -> Tensor:
        first = run.rows(step, args.batch // GROUP)
        at, groups = torch.tensor(first), args.cache // GROUP
        order = torch.Generator().manual_seed(int(at[0]) // groups)
        chosen = torch.randperm(groups, generator=order)[at % groups]
        rows = (chosen[:, None] * GROUP + torch.arange(GROUP)).flatten()
        images = 2 * (stored["images"][rows].float() / 255) - 1
        mirrored = torch.rand(len(rows), 1, 1, 1) < 0.5
        images = torch.where(mirrored, images.flip(3), images).contiguous(memory_format=torch.channels_last)
        return preferred(model(images).logits[:, 0], stored["quality"][rows])

    def after_step(step: int) -> None:
        average.update(model, step)
        # Statistics of batch normalization are no parameters.
        for own, other in zip(average.shadow.buffers(), model.buffers(), strict=True):
            own.copy_(other)

    @torch.no_grad()
    def report(step: int) -> None:
        parts = (2 * (x.float() / 255) - 1 for x in fresh["images"].split(64))
        found = agreement(torch.cat([average.shadow(x).logits[:, 0] for x in parts]), fresh["quality"])
        print(f"\nstep {step}: " + ", ".join(f"{k} {v:.3f}" for k, v in found.items()), flush=True)

    modules = {"preference": model, "average": average}
    run.train(loss_at, modules, Muon(model.parameters(), kind.lr), after_step, sample=report)


if __name__ == "__main__":
    main()
