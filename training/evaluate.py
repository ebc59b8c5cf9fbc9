"""Every figure of the packaged model, as anyone would load it, and its contact sheets.

Samples: every concept, `--seeds` pictures each (at 8: two plain and one in each style), the colours in turn,
25 DPM-Solver++(2M) steps at guidance 4, float32. They are judged by classifiers that had no part in making them.
Each figure has the same figure of fresh renders beside it, of the same captions and from a seed of its own.
"""

import argparse
import json
import platform
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from classifier import KINDS, accuracy
from diffusers import StableDiffusionPipeline
from diffusion import sample
from export import ZOO
from render import SIZE, Batch, Renderer, caption, contact_sheet, psnr
from torch import Tensor
from tqdm import tqdm
from transformers import AutoModelForImageClassification
from vae import HELD_OUT, reconstruct

TEST_SEED = 900_002  # of tests/data/renders.png
FRESH_SEED = 900_003  # of the renders that samples are compared with


def wanted(renderer: Renderer, seeds: int) -> tuple[Tensor, Tensor, Tensor]:
    """Numbers of the concept, colour and style of each picture, concept by concept."""
    concepts = torch.arange(len(renderer.concepts)).repeat_interleave(seeds)
    seed = torch.arange(seeds).repeat(len(renderer.concepts))
    return (
        concepts,
        (concepts + 3 * seed) % len(renderer.colours),
        (seed - 1).clamp(0) % len(renderer.styles),
    )


def samples(pipe: Any, renderer: Renderer, labels: tuple[Tensor, ...], guidance: float) -> Tensor:
    """One picture for each caption; the noise of picture i has seed i."""
    prompts = [
        caption(renderer.concepts[c], renderer.colours[b], renderer.styles[s])
        for c, b, s in zip(*(each.tolist() for each in labels), strict=True)
    ]
    images = []
    for start in tqdm(range(0, len(prompts), 64), desc="samples"):
        part = prompts[start : start + 64]
        images.append(sample(pipe, part, list(range(start, start + len(part))), guidance))
    return torch.cat(images).clamp(0, 1)


def fresh(renderer: Renderer, labels: tuple[Tensor, ...], seed: int) -> Tensor:
    """Renders of the same captions."""
    u = torch.rand(len(labels[0]), 7, generator=torch.Generator().manual_seed(seed))
    parts = [
        renderer.draw(*(each[i : i + 64] for each in labels), u[i : i + 64]).images
        for i in range(0, len(u), 64)
    ]
    return torch.cat(parts)


@torch.no_grad()
def features(judge: Any, images: Tensor) -> Tensor:
    """What the judge's last layer reads."""
    return torch.cat([judge.regnet(2 * x - 1).pooler_output.flatten(1) for x in images.split(64)]).double()


def frechet(a: Tensor, b: Tensor) -> float:
    """Fréchet distance of two Gaussians fitted to features: |m_a - m_b|^2 + tr(A + B - 2 (A B)^(1/2))."""
    covariances = torch.cov(a.T), torch.cov(b.T)
    values, vectors = torch.linalg.eigh(covariances[0])
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ covariances[1] @ root).clamp(min=0).sqrt().sum()
    spread = covariances[0].trace() + covariances[1].trace() - 2 * cross
    return float((a.mean(0) - b.mean(0)).square().sum() + spread)


def spread(images: Tensor, seeds: int) -> tuple[float, float]:
    """Standard deviation over a concept's pictures of the object's centre and size, in pixels.

    The object is what differs from the median of the border.
    """
    frame = torch.ones(SIZE, SIZE, dtype=torch.bool)
    frame[2:-2, 2:-2] = False
    median = images[:, :, frame].median(2).values[:, :, None, None]
    mask = ((images - median).abs().amax(1) > 0.12).double()
    mass = mask.sum((1, 2)).clamp(min=1)
    place = torch.arange(SIZE, dtype=torch.float64)
    y, x = (mask.sum(2) @ place) / mass, (mask.sum(1) @ place) / mass
    deviations = [each.view(-1, seeds).std(1).mean() for each in (x, y, mass.sqrt())]
    return float((deviations[0] + deviations[1]) / 2), float(deviations[2])


def judged(
    judges: dict[str, Any], images: Tensor, labels: tuple[Tensor, ...], styles: list[str]
) -> dict[str, Any]:
    """How often each judge says what was asked for; the concept also style by style."""
    out: dict[str, Any] = {
        name: accuracy(judge, images, each)
        for (name, judge), each in zip(judges.items(), labels, strict=True)
    }
    for number, style in enumerate(styles):
        chosen = labels[2] == number
        out[f"concept, {style}"] = accuracy(judges["concept"], images[chosen], labels[0][chosen])
    return out


@torch.no_grad()
def missed(judge: Any, images: Tensor, concepts: Tensor, names: list[str]) -> str:
    """The concepts most often taken for another."""
    guesses = torch.cat([judge(2 * x - 1).logits.argmax(1) for x in images.split(64)])
    pairs = Counter(
        f"{names[a]} as {names[b]}"
        for a, b in zip(concepts.tolist(), guesses.tolist(), strict=True)
        if a != b
    )
    return ", ".join(f"{pair} x{n}" for pair, n in pairs.most_common(12)) or "none"


def seconds(pipe: Any, guidance: float) -> tuple[float, float]:
    """What 16 pictures take, and the first picture of the command line from a cold start."""
    prompts = ["a red apple on a blue background"] * 16
    sample(pipe, prompts[:1], [0], guidance)
    start = time.perf_counter()
    sample(pipe, prompts, list(range(16)), guidance)
    warm = time.perf_counter() - start
    start = time.perf_counter()
    with TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "adjointdpm", "sample", "--prompt", prompts[0], "--batch", "1"]
        subprocess.run([*command, "--output_dir", folder], check=True, stdout=subprocess.DEVNULL)
    return warm, time.perf_counter() - start


def write_sheets(pipe: Any, renderer: Renderer, folder: Path, guidance: float) -> None:
    """Concepts by seeds (4 pictures each of 64 concepts), and styles by concepts."""
    names, colours, styles = renderer.concepts, renderer.colours, renderer.styles
    chosen = names[:: max(1, len(names) // 64)][:64]
    prompts = [
        caption(c, colours[(i + 3 * k) % len(colours)]) for i, c in enumerate(chosen) for k in range(4)
    ]
    contact_sheet(
        sample(pipe, prompts, list(range(len(prompts))), guidance), folder / "contact_sheet.png", 16
    )
    some = names[3 :: max(1, len(names) // 16)][:16]
    prompts = [caption(c, colours[i % len(colours)], style) for style in styles for i, c in enumerate(some)]
    # One noise a column, so that a column shows what the style alone does.
    seeds = list(range(len(some))) * len(styles)
    contact_sheet(sample(pipe, prompts, seeds, guidance), folder / "styles.png", 16)


def write_test_renders(folder: Path, count: int = 234) -> None:
    """A lossless sheet of fresh renders with their names, for tests that have no font."""
    renderer = Renderer()
    batch: Batch = renderer(TEST_SEED, range(count))
    contact_sheet(batch.images, folder / "renders.png", columns=18)
    about = {
        "tile": SIZE,
        "columns": 18,
        "concepts": [renderer.concepts[number] for number in batch.concepts.tolist()],
        "colours": [renderer.colours[number] for number in batch.colours.tolist()],
        "styles": [renderer.styles[number] for number in batch.styles.tolist()],
    }
    (folder / "renders.json").write_text(json.dumps(about, indent=1) + "\n")


def main() -> None:
    """Print every figure, or write the sheets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--zoo", type=Path, default=ZOO)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--output", type=Path, help="write the figures here, too, as JSON")
    parser.add_argument("--sheets", type=Path, help="write the contact sheets to this folder and stop")
    parser.add_argument("--renders", type=Path, help="write the tests' renders to this folder and stop")
    args = parser.parse_args()

    if args.renders:
        write_test_renders(args.renders)
        return
    renderer = Renderer()
    pipe = StableDiffusionPipeline.from_pretrained(args.zoo / "emoji", dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    if args.sheets:
        write_sheets(pipe, renderer, args.sheets, args.guidance)
        return

    def classifier(name: str) -> Any:
        return AutoModelForImageClassification.from_pretrained(
            args.zoo / f"emoji-{name}", dtype=torch.float32
        ).eval()

    judges = {
        "concept": classifier("judge"),
        "colour": classifier("judge-colour"),
        "style": classifier("judge-style"),
    }
    warm, cold = seconds(pipe, args.guidance)
    held_out = renderer(HELD_OUT, range(1000))
    labels = wanted(renderer, args.seeds)
    renders, others = fresh(renderer, labels, FRESH_SEED), fresh(renderer, labels, FRESH_SEED + 1)
    made = samples(pipe, renderer, labels, args.guidance)
    found = [features(judges["concept"], images) for images in (made, renders, others)]
    centre, size = spread(made, args.seeds)
    real_centre, real_size = spread(renders, args.seeds)
    figures = {
        "pictures": len(made),
        "samples": judged(judges, made, labels, renderer.styles),
        "renders": judged(judges, renders, labels, renderer.styles),
        "samples missed": missed(judges["concept"], made, labels[0], renderer.concepts),
        "psnr_db": psnr(reconstruct(pipe.vae, renders), renders),
        "frechet": {
            "samples to renders": frechet(found[0], found[1]),
            "renders to renders": frechet(found[1], found[2]),
        },
        "spread over seeds, pixels": {
            "centre": {"samples": centre, "renders": real_centre},
            "size": {"samples": size, "renders": real_size},
        },
        "top-1 on fresh renders": {
            name: accuracy(classifier(name), held_out.images, getattr(held_out, kind.names))
            for name, kind in KINDS.items()
            if (args.zoo / f"emoji-{name}").is_dir()
        },
        "seconds": {"16 pictures": warm, "first picture of the command line": cold},
        "machine": f"{platform.machine()}, {torch.get_num_threads()} CPU threads, torch {torch.__version__}",
    }
    text = json.dumps(figures, indent=1, ensure_ascii=False)
    print(text)
    if args.output:
        args.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
