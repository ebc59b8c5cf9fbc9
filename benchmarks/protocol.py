"""What the protocols of the tasks share: their flags, their model, and concepts spread over its list."""

import argparse
import json
from pathlib import Path
from typing import Any

import adjointdpm as adp

__all__ = ["about", "article", "flags_of", "model", "spread"]

about: dict[str, Any] = json.loads((adp.zoo.folder("emoji") / "emoji.json").read_text())


def flags_of(doc: str | None, **counts: int) -> argparse.ArgumentParser:
    """A parser with the common flags, and with a flag for each count."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmark"), help="of pages")
    parser.add_argument("--record", type=Path, default=None, help="JSON of the figures")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--budget", default="4GiB", help="of memory for kept graphs: the same gradient, sooner"
    )
    for name, value in counts.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    return parser


def model(flags: argparse.Namespace) -> adp.FlowSampler:
    """The bundled model with exact gradients; its tokenizer is its own."""
    exact = adp.Checkpointed(budget=flags.budget)
    return adp.load_bundled(
        "emoji",
        steps=flags.sampling,
        guidance_scale=flags.guidance,
        adjoint=exact,
        device=flags.device,
    )


def spread(number: int) -> list[tuple[str, str]]:
    """So many concepts and their phrases, at even distances in the model's list."""
    items = list(about["phrases"].items())
    return items[:: max(1, len(items) // number)][:number]


def article(word: str) -> str:
    """The word with its article."""
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"
