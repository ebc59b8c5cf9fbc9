"""Give the text encoder a sense of what the words look like, before the diffusion starts.

From each caption's hidden states at the end token and the padding behind it, a linear map has to
paint the glyph (8 x 8 pixels, upright, with its opacity) and the background colour, and to name the style.
Concepts that look alike get states that are alike, so the UNet need not learn every word by itself: without
this stage it had learned all the colours after 250 steps and none of the 234 concepts after 800.
"""

import argparse
from pathlib import Path

import torch
from checkpoint import Run
from diffusion import WIDTH, build_text_encoder, caption_ids
from render import COLOURS, Renderer
from tokenizer import build
from torch import Tensor, nn
from torch.nn import functional
from vae import RUNS


def looks(renderer: Renderer) -> tuple[Tensor, Tensor]:
    """Standardised pictures of the concepts (N, 256) and colours (10, 3)."""
    glyphs = functional.interpolate(renderer.atlas, (8, 8), mode="area").flatten(1)
    colours = torch.tensor(list(COLOURS.values())) / 255
    return (glyphs - glyphs.mean(0)) / glyphs.std(), (colours - colours.mean(0)) / colours.std()


def main() -> None:
    """Train the text encoder and the linear map; only the encoder is used afterwards."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=4)
    parser.add_argument("--save_every", type=int, default=100)
    parser.add_argument("--glyphs", type=Path, help="a folder of RGBA pictures instead of the font's")
    parser.add_argument("--runs", type=Path, default=RUNS)
    args = parser.parse_args()

    renderer = Renderer(args.glyphs)
    glyphs, colours = looks(renderer)
    nothing = colours.new_zeros(1, 3)  # what a caption without a colour says of it
    colours, styles = torch.cat([colours, nothing]), torch.eye(len(renderer.styles)) * 3
    tokenizer = build(renderer)
    ids = caption_ids(tokenizer, renderer)
    torch.manual_seed(args.seed)
    text_encoder = build_text_encoder(tokenizer).train()
    sizes = [glyphs.shape[1], colours.shape[1], styles.shape[1]]
    head = nn.Linear(WIDTH, sum(sizes))
    weights = [*text_encoder.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(weights, args.lr, weight_decay=1e-2, fused=True)
    run = Run(args.runs / "text", args.steps, args.lr, args.seed, save_every=args.save_every)

    def loss_at(step: int) -> Tensor:
        share = len(run.rows(step, args.batch))
        concept, colour, style = (torch.randint(0, n, (share,)) for n in ids.shape[:3])
        told = ids[concept, colour, style]
        painted = head(text_encoder(told)[0]).split(sizes, -1)
        ends = (told == tokenizer.eos_token_id).float()
        targets = (glyphs[concept], colours[colour], styles[style])
        each = sum((p - t[:, None]).square().mean(-1) for p, t in zip(painted, targets, strict=True))
        return (each * ends).sum() / ends.sum()

    run.train(loss_at, {"text_encoder": text_encoder, "head": head}, optimizer)


if __name__ == "__main__":
    main()
