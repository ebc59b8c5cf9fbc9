"""Give the text encoder a sense of what the words look like, before the diffusion starts.

From each caption's hidden states at the end token and the padding behind it, a linear map has to
paint the glyph (8 x 8 pixels, upright, with its opacity) and the background colour. Concepts that
look alike get states that are alike, so the UNet need not learn every word by itself: without this
stage it had learned all the colours after 250 steps and none of the 234 concepts after 800.
"""

import argparse
from pathlib import Path

import torch
from checkpoint import Run
from diffusion import WIDTH, build_text_encoder
from render import COLOURS, Renderer, caption
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
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=4)
    parser.add_argument("--out", type=Path, default=RUNS / "text")
    args = parser.parse_args()

    renderer = Renderer()
    glyphs, colours = looks(renderer)
    tokenizer = build(renderer.concepts)
    torch.manual_seed(args.seed)
    text_encoder = build_text_encoder(tokenizer).train()
    head = nn.Linear(WIDTH, glyphs.shape[1] + colours.shape[1])
    weights = [*text_encoder.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(weights, args.lr, weight_decay=1e-2, fused=True)

    def loss_at(step: int) -> Tensor:
        concept = torch.randint(0, len(glyphs), (args.batch,))
        colour = torch.randint(0, len(colours), (args.batch,))
        u = torch.rand(args.batch)
        texts = [
            caption(renderer.concepts[i], renderer.colours[j], v)
            for i, j, v in zip(concept.tolist(), colour.tolist(), u.tolist(), strict=True)
        ]
        ids = tokenizer(texts, padding="max_length", return_tensors="pt").input_ids
        painted = head(text_encoder(ids)[0])
        # Nothing is said of the glyph by an empty caption, nor of the background by a short one.
        target = torch.cat(
            [glyphs[concept] * (u >= 0.1)[:, None], colours[colour] * (u >= 0.2)[:, None]], 1
        )
        error = (painted - target[:, None]).square()
        ends = (ids == tokenizer.eos_token_id).float()
        split = glyphs.shape[1]
        each = error[..., :split].mean(-1) + error[..., split:].mean(-1)
        return (each * ends).sum() / ends.sum()

    run = Run(args.out, args.steps, args.lr, args.seed)
    run.train(loss_at, {"text_encoder": text_encoder, "head": head}, optimizer)


if __name__ == "__main__":
    main()
