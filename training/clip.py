"""Train the small CLIP, or the one that judges it, on captions and renders.

A batch has B renders, their captions, and for each of them three false captions that differ in one attribute alone
(the concept, the background's colour or the style), so that all three are told apart:

    v_i = f(x_i) / |f(x_i)|,   t_j = g(c_j) / |g(c_j)|,   l_ij = s v_i . t_j,   j = 1 .. 4B
    loss = -log softmax_j(l_i.)[i] - log softmax_i(l_.i)[i] + what linear heads on f's last state miss of the attributes

Other captions that describe render i, too, are left out of its softmax. The heads are not exported. The renders are
placed once (`cached`); colours, styles and a shift of up to 4 pixels are new each time. In the first steps
(`--halved`) the image tower is given a random half of the patches, which halves its cost (Li et al., 2023, arXiv
2212.00794).

The judge has another patch, depth and width, other seeds and other renders, and serves measurement alone: it is never
part of a loss.
"""

import argparse
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from cache import cached
from checkpoint import Ema, Run, load_modules, process
from diffusion import caption_ids
from muon import Muon
from render import SIZE, Batch, Renderer
from styles import SHARES
from tokenizer import MAX_LENGTH, build
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
from vae import HELD_OUT, RUNS

__all__ = ["ATTRIBUTES", "KINDS", "image_embeddings", "load_trained_clip", "retrieval", "text_embeddings"]

ATTRIBUTES = ("concept", "colour", "style")
WITHOUT_COLOUR = 0.1  # share of the captions that leave the colour out
MOST = 4.6  # of the logarithm of the scale s, as in CLIP


@dataclass(frozen=True)
class Kind:
    """The sizes of one CLIP, and what it is trained with."""

    vision: dict[str, int]
    text: dict[str, int]
    width: int
    data_seed: int
    seed: int
    steps: int
    lr: float = 2e-3


def _tower(width: int, inner: int, layers: int, heads: int, **more: int) -> dict[str, int]:
    sizes = {"hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers}
    return {**sizes, "num_attention_heads": heads, **more}


KINDS = {
    "clip": Kind(
        _tower(128, 384, 4, 4, image_size=64, patch_size=8), _tower(128, 256, 2, 4), 128, 13, 13, 1000
    ),
    "judge-clip": Kind(
        _tower(144, 288, 5, 6, image_size=72, patch_size=12), _tower(96, 192, 1, 4), 96, 17, 17, 1400
    ),
}


def build_clip(kind: Kind, tokenizer: CLIPTokenizer) -> CLIPModel:
    """An untrained CLIP, whose positions start as waves."""
    text: dict[str, Any] = {
        **kind.text,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": MAX_LENGTH,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=kind.vision, projection_dim=kind.width))
    positions = model.vision_model.embeddings.position_embedding.weight
    side = kind.vision["image_size"] // kind.vision["patch_size"]
    with torch.no_grad():
        positions.zero_()[1:] = 0.5 * waves(side, positions.shape[1])
    return model


def waves(side: int, width: int) -> Tensor:
    """Sines and cosines of the row and of the column of each patch, (side^2, width)."""
    frequencies = torch.logspace(0, 1, width // 4) * math.pi / (2 * side)
    angles = torch.arange(side)[:, None] * frequencies
    each = torch.cat([angles.sin(), angles.cos()], 1)
    down, across = each[:, None].expand(-1, side, -1), each[None].expand(side, -1, -1)
    return torch.cat([down, across], 2).reshape(side * side, -1)


def load_trained_clip(name: str, tokenizer: CLIPTokenizer, runs: Path = RUNS) -> CLIPModel:
    """The moving average of the last checkpoint."""
    ema = Ema(build_clip(KINDS[name], tokenizer))
    load_modules(runs / name / "checkpoint.safetensors", {"average": ema})
    return ema.shadow


def pooled(model: CLIPModel, images: Tensor) -> Tensor:
    """The image tower's last state, of images in [0, 1]."""
    side = model.config.vision_config.image_size
    if side != SIZE:
        images = functional.interpolate(images, (side, side), mode="bicubic", antialias=True)
    return model.vision_model(pixel_values=2 * images - 1).pooler_output


def image_embeddings(model: CLIPModel, images: Tensor) -> Tensor:
    """Normalized embeddings of images in [0, 1]."""
    return functional.normalize(model.visual_projection(pooled(model, images)), dim=1)


def text_embeddings(model: CLIPModel, ids: Tensor) -> Tensor:
    """Normalized embeddings of captions; what is behind the first end token does not count."""
    length = int((ids == ids[0, -1]).int().argmax(1).max()) + 1
    state = model.text_model(input_ids=ids[:, :length]).pooler_output
    return functional.normalize(model.text_projection(state), dim=1)


def retrieval(images: Tensor, texts: Tensor, batch: Batch) -> dict[str, Tensor]:
    """Whether the best of all captions is the image's own, as a whole and attribute by attribute.

    Args:
        images: normalized embeddings of renders, (B, width).
        texts: normalized embeddings of all captions, (concepts, colours, styles, width).
        batch: the renders' labels.

    Returns:
        for "caption", "concept", "colour" and "style" a tensor (B,) of truth values.
    """
    best = (images @ texts.flatten(0, 2).T).argmax(1)
    found = torch.unravel_index(best, texts.shape[:3])
    right = [a == b for a, b in zip(found, (batch.concepts, batch.colours, batch.styles), strict=True)]
    return {"caption": right[0] & right[1] & right[2], **dict(zip(ATTRIBUTES, right, strict=True))}


def shifted(glyphs: Tensor, most: int = 4) -> Tensor:
    """Glyphs moved by up to `most` pixels either way, nothing behind them."""
    padded = functional.pad(glyphs, (most,) * 4)
    corners = torch.randint(0, 2 * most + 1, (len(glyphs), 2)).tolist()
    return torch.stack(
        [x[:, i : i + SIZE, j : j + SIZE] for x, (i, j) in zip(padded, corners, strict=True)]
    )


def changed(labels: tuple[Tensor, ...], counts: tuple[int, ...]) -> list[Tensor]:
    """Labels of three times as many captions: of each row one attribute, then another, has some other value."""
    columns: list[list[Tensor]] = [[], [], []]
    for which, count in enumerate(counts):
        for number, each in enumerate(labels):
            other = (each + torch.randint(1, count, each.shape)) % count
            columns[number].append(other if number == which else each)
    return [torch.cat(column) for column in columns]


class Dropout:
    """A hook on patch embeddings (B, 1 + N, width) that keeps a random share of the patches of each image."""

    share = 1.0

    def __call__(self, module: nn.Module, args: tuple[Any, ...], states: Tensor) -> Tensor:
        """Choose the patches; the first state is of the class and stays."""
        if self.share == 1:
            return states
        count, patches, width = len(states), states.shape[1] - 1, states.shape[2]
        chosen = 1 + torch.rand(count, patches).argsort(1)[:, : round(self.share * patches)]
        kept = states.gather(1, chosen[:, :, None].expand(-1, -1, width))
        return torch.cat([states[:, :1], kept], 1)


def contrast(logits: Tensor, fits: Tensor) -> Tensor:
    """The mean of -log softmax at (i, i), over the columns that do not fit row i besides."""
    own = torch.eye(*logits.shape, dtype=torch.bool)
    masked = logits.masked_fill(fits & ~own, -torch.inf)
    return functional.cross_entropy(masked, torch.arange(len(logits)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=list(KINDS))
    parser.add_argument("--steps", type=int)
    parser.add_argument("--lr", type=float, help="the highest learning rate")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--cache", type=int, default=16_384)
    parser.add_argument("--halved", type=int, default=800, help="steps with half of the patches")
    parser.add_argument(
        "--line_drawings", type=float, default=SHARES["line drawing"], help="share of these"
    )
    parser.add_argument("--save_every", type=int, default=100)
    parser.add_argument("--glyphs", type=Path, help="a folder of RGBA pictures instead of the font's")
    parser.add_argument("--runs", type=Path, default=RUNS)
    parser.add_argument("--package", type=Path, help="a packaged CLIP of this kind to go on from")
    args = parser.parse_args()

    kind, renderer = KINDS[args.name], Renderer(args.glyphs)
    lr = args.lr or kind.lr
    counts = (len(renderer.concepts), len(renderer.colours), len(renderer.styles))
    tokenizer = build(renderer)
    ids = caption_ids(tokenizer, renderer)
    shares = torch.tensor([SHARES[name] for name in renderer.styles])
    lines = renderer.styles.index("line drawing")
    shares[lines] = (
        args.line_drawings * (1 - shares[lines]) / (1 - args.line_drawings)
    )  # multinomial normalizes

    def make(rows: range) -> dict[str, Tensor]:
        draws = torch.Generator().manual_seed(kind.data_seed * 1_000_003 + rows.start)
        concepts = torch.tensor([row % counts[0] for row in rows])
        glyphs = renderer.place(concepts, torch.rand(len(rows), 4, generator=draws))
        return {"glyphs": (glyphs * 255).round().byte(), "concepts": concepts}

    stored = cached(args.runs / f"glyphs-{kind.data_seed}", args.cache, make)
    torch.manual_seed(kind.seed)
    model = build_clip(kind, tokenizer)
    if args.package:
        model.load_state_dict(CLIPModel.from_pretrained(args.package, dtype=torch.float32).state_dict())
    model.train()
    heads = nn.Linear(kind.vision["hidden_size"], sum(counts))
    dropout = Dropout()
    model.vision_model.embeddings.register_forward_hook(dropout)
    average = Ema(build_clip(kind, tokenizer))
    weights = [*model.parameters(), *heads.parameters()]
    held_out = renderer(HELD_OUT, range(min(512, 4 * counts[0])))
    run = Run(
        args.runs / args.name,
        args.steps or kind.steps,
        lr,
        kind.seed,
        save_every=args.save_every,
        sample_every=200,
    )
    if process()[0] == 0:
        print(f"{args.name}: {sum(p.numel() for p in model.parameters()):,} weights")

    def loss_at(step: int) -> Tensor:
        at = torch.tensor(run.rows(step, args.batch))
        order = torch.Generator().manual_seed(int(at[0]) // args.cache)
        rows = torch.randperm(args.cache, generator=order)[at % args.cache]
        concepts, count = stored["concepts"][rows], len(rows)
        colours = torch.randint(counts[1], (count,))
        styles = torch.multinomial(shares, count, replacement=True)
        glyphs = shifted(stored["glyphs"][rows]).float() / 255
        images = renderer.compose(glyphs, concepts, colours, styles, torch.rand(count, 3)).images
        said = torch.where(torch.rand(count) < WITHOUT_COLOUR, counts[1], colours)
        own, false = (concepts, said, styles), changed((concepts, colours, styles), counts)
        captions = [torch.cat(pair) for pair in zip(own, false, strict=True)]
        dropout.share = 0.5 if step < args.halved else 1.0
        state = pooled(model, images)
        v = functional.normalize(model.visual_projection(state), dim=1)
        t = text_embeddings(model, ids[captions[0], captions[1], captions[2]])
        logits = model.logit_scale.clamp(max=MOST).exp() * v @ t.T
        fits = (concepts[:, None] == captions[0]) & (styles[:, None] == captions[2])
        fits &= (colours[:, None] == captions[1]) | (captions[1] == counts[1])
        loss = contrast(logits, fits) + contrast(logits[:, :count].T, fits[:, :count].T)
        for guess, label in zip(heads(state).split(counts, 1), (concepts, colours, styles), strict=True):
            loss = loss + functional.cross_entropy(guess, label)
        return loss

    @torch.no_grad()
    def report(step: int) -> None:
        model, named = average.shadow, ids[:, :-1]  # the last colour is none
        texts = torch.cat([text_embeddings(model, part) for part in named.flatten(0, 2).split(512)])
        images = torch.cat([image_embeddings(model, part) for part in held_out.images.split(64)])
        found = retrieval(images, texts.view(*named.shape[:3], -1), held_out)
        shares = ", ".join(f"{name} {float(each.float().mean()):.3f}" for name, each in found.items())
        print(f"\nstep {step}: {shares}", flush=True)

    modules = {"clip": model, "heads": heads, "average": average}
    run.train(
        loss_at,
        modules,
        Muon(weights, lr),
        lambda step: average.update(model, step),
        sample=report,
    )


if __name__ == "__main__":
    main()
