"""Figures and contact sheets of the packaged model, as anyone would load it.

Samples: every concept, `--seeds` pictures each, 25 DPM-Solver++(2M) steps. The colour of a sample
is the palette colour nearest to the median of its border, the concept is the bundled classifier's
first choice. Renders: seeds that no training used.
"""

import argparse
import json
import time
from collections import Counter
from pathlib import Path

import torch
from classifier import accuracy
from diffusers import StableDiffusionPipeline
from diffusion import sample
from export import ZOO
from render import COLOURS, Renderer, caption, contact_sheet, psnr
from torch import Tensor
from tqdm import tqdm
from transformers import ResNetForImageClassification
from vae import HELD_OUT, reconstruct

TEST_SEED = 900_002  # of tests/data/renders.png


def border_colours(images: Tensor) -> Tensor:
    """Number of the palette colour nearest to the median of the outer two pixels."""
    frame = torch.ones(images.shape[-2:], dtype=torch.bool)
    frame[2:-2, 2:-2] = False
    median = images[:, :, frame].median(2).values
    palette = torch.tensor(list(COLOURS.values())) / 255
    return torch.cdist(median, palette).argmin(1)


def evaluate_samples(
    pipe: StableDiffusionPipeline, model: ResNetForImageClassification, seeds: int, guidance: float
) -> None:
    """Print how many samples the classifier recognises, and how many have the right colour."""
    names = list(model.config.id2label.values())
    palette = list(COLOURS)
    images, colours = [], []
    for seed in tqdm(range(seeds), desc="samples"):
        wanted = [(number + 3 * seed) % len(palette) for number in range(len(names))]
        prompts = [caption(n, palette[c], 1.0) for n, c in zip(names, wanted, strict=True)]
        noise = [10_000 * (seed + 1) + number for number in range(len(names))]
        images.append(sample(pipe, prompts, noise, guidance))
        colours += wanted
    pictures = torch.cat(images)
    target = torch.arange(len(names)).repeat(seeds)
    with torch.no_grad():
        guesses = torch.cat([model(2 * x - 1).logits.argmax(1) for x in pictures.split(64)])
    wrong = guesses != target
    colour = (border_colours(pictures) == torch.tensor(colours)).float().mean()
    print(f"samples: top-1 {1 - wrong.float().mean():.3f} of {len(target)}, colour {colour:.3f}")
    misses = Counter(
        f"{names[a]} as {names[b]}"
        for a, b in zip(target[wrong].tolist(), guesses[wrong].tolist(), strict=True)
    )
    print("missed:", ", ".join(f"{name} x{n}" for name, n in misses.most_common()) or "none")


def time_sampling(pipe: StableDiffusionPipeline, guidance: float) -> None:
    """Print the seconds that 16 pictures take."""
    prompts = ["a red apple on a blue background"] * 16
    sample(pipe, prompts[:1], [0], guidance)
    start = time.perf_counter()
    sample(pipe, prompts, list(range(16)), guidance)
    seconds = time.perf_counter() - start
    print(f"16 pictures, 25 steps: {seconds:.1f} s on {torch.get_num_threads()} CPU threads")


def write_sheet(pipe: StableDiffusionPipeline, concepts: list[str], path: Path, guidance: float) -> None:
    """A third of the concepts, two seeds side by side, 16 tiles a row."""
    palette = list(COLOURS)
    prompts, seeds = [], []
    for row, concept in enumerate(concepts[::3]):
        for seed in (0, 1):
            prompts.append(caption(concept, palette[(row + 5 * seed) % len(palette)], 1.0))
            seeds.append(seed)
    contact_sheet(sample(pipe, prompts, seeds, guidance), path, columns=16)


def write_test_renders(folder: Path, count: int = 200) -> None:
    """A lossless sheet of fresh renders with their names, for tests that have no font."""
    renderer = Renderer()
    batch = renderer(TEST_SEED, range(count))
    contact_sheet(batch.images, folder / "renders.png", columns=20)
    about = {
        "tile": 64,
        "columns": 20,
        "concepts": [renderer.concepts[number] for number in batch.concepts.tolist()],
        "colours": [renderer.colours[number] for number in batch.colours.tolist()],
    }
    (folder / "renders.json").write_text(json.dumps(about, indent=1) + "\n")


def main() -> None:
    """Print every figure, or write one of the sheets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--zoo", type=Path, default=ZOO)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--sheet", type=Path, help="write a contact sheet of samples here and stop")
    parser.add_argument("--renders", type=Path, help="write renders.png/json here and stop")
    args = parser.parse_args()

    if args.renders:
        write_test_renders(args.renders)
        return
    pipe = StableDiffusionPipeline.from_pretrained(args.zoo / "emoji", dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    about = json.loads((args.zoo / "emoji" / "emoji.json").read_text())
    if args.sheet:
        write_sheet(pipe, about["concepts"], args.sheet, args.guidance)
        return
    model = ResNetForImageClassification.from_pretrained(
        args.zoo / "emoji-resnet", dtype=torch.float32
    ).eval()
    fresh = Renderer()(HELD_OUT, range(5 * len(about["concepts"])))
    decoded = reconstruct(pipe.vae, fresh.images)
    print(f"autoencoder: PSNR {psnr(decoded, fresh.images):.2f} dB on {len(decoded)} fresh renders")
    print(f"classifier: top-1 {accuracy(model, fresh.images, fresh.concepts):.3f} on fresh renders")
    print(f"classifier: top-1 {accuracy(model, decoded, fresh.concepts):.3f} on reconstructions")
    time_sampling(pipe, args.guidance)
    evaluate_samples(pipe, model, args.seeds, args.guidance)


if __name__ == "__main__":
    main()
