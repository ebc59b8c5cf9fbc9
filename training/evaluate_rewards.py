"""Every figure of the packaged rewards and of their judges, as anyone would load them, on renders that no training saw.

CLIP: each concept in each style, the colours in turn; the captions that an image is ranked against are all of 234
concepts, 10 colours and 7 styles. Preference: pairs with one caption, by the rule of `preference.py`. With --samples,
images that the bundled model makes are ranked, too.
"""

import argparse
import json
import platform
from pathlib import Path
from typing import Any

import torch
from clip import retrieval, text_embeddings
from diffusers import StableDiffusionPipeline
from diffusion import caption_ids
from evaluate import fresh, samples, wanted
from export import ZOO
from preference import FRESH, GROUP, agreement, rated
from render import Batch, Renderer
from torch import Tensor
from torch.nn import functional

from adjointdpm import zoo
from adjointdpm.metrics.clip import image_features

CLIPS = ("emoji/clip", "emoji/judge/clip")
PREFERENCES = ("emoji/preference", "emoji/judge/preference")


def share(right: Tensor) -> float:
    """The share of truth values, to four digits."""
    return round(float(right.float().mean()), 4)


@torch.no_grad()
def ranked(name: str, renderer: Renderer, batch: Batch) -> dict[str, Any]:
    """What a CLIP retrieves, attribute by attribute, and style by style."""
    model, tokenizer, preprocess = zoo.load_clip(name)
    ids = caption_ids(tokenizer, renderer)[:, :-1]
    texts = torch.cat([text_embeddings(model, part) for part in ids.flatten(0, 2).split(512)])
    embedded = [image_features(model, preprocess, part) for part in batch.images.split(64)]
    images = functional.normalize(torch.cat(embedded), dim=1)
    right = retrieval(images, texts.view(*ids.shape[:3], -1), batch)
    styles = {
        style: share(right["caption"][batch.styles == number])
        for number, style in enumerate(renderer.styles)
        if bool((batch.styles == number).any())
    }
    return {**{what: share(each) for what, each in right.items()}, "caption by style": styles}


@torch.no_grad()
def rewards_of(name: str, images: Tensor) -> Tensor:
    """What a preference gives images of 8 bits."""
    reward = zoo.load_preference(name)
    return torch.cat([reward.scores(part.float() / 255) for part in images.split(64)])


def main() -> None:
    """Print every figure, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--groups", type=int, default=1024, help="of four renders, for the preferences")
    parser.add_argument("--samples", action="store_true", help="rank one sample of each concept, too")
    parser.add_argument("--output", type=Path, help="write the figures here, too, as JSON")
    args = parser.parse_args()

    renderer = Renderer()
    concepts = torch.arange(len(renderer.concepts)).repeat_interleave(len(renderer.styles))
    styles = torch.arange(len(renderer.styles)).repeat(len(renderer.concepts))
    labels = (concepts, (concepts + 3 * styles) % len(renderer.colours), styles)
    renders = Batch(fresh(renderer, labels, FRESH), *labels)
    figures: dict[str, Any] = {
        "captions": len(renderer.concepts) * len(renderer.colours) * len(renderer.styles),
        "renders": len(concepts),
        "top-1 on fresh renders": {name: ranked(name, renderer, renders) for name in CLIPS},
    }
    if args.samples:
        pipe = StableDiffusionPipeline.from_pretrained(ZOO / "emoji", dtype=torch.float32)
        pipe.set_progress_bar_config(disable=True)
        asked = wanted(renderer, 1)
        made = Batch(samples(pipe, renderer, asked, 4.0), *asked)
        figures["samples"] = len(made.images)
        figures["top-1 on samples"] = {name: ranked(name, renderer, made) for name in CLIPS}
    parts = [rated(renderer, FRESH, range(i, i + 64)) for i in range(0, args.groups * GROUP, 64)]
    images, q = (torch.cat([part[name] for part in parts]) for name in ("images", "quality"))
    found = {name: rewards_of(name, images) for name in PREFERENCES}
    figures["pairs"] = args.groups
    figures["agreement with the rule"] = {name: agreement(r, q) for name, r in found.items()}
    figures["agreement of reward and judge"] = agreement(*found.values())["all pairs"]
    folders = [zoo.folder(name) for name in (*CLIPS, *PREFERENCES)]
    figures["bytes"] = {each.name: sum(f.stat().st_size for f in each.iterdir()) for each in folders}
    figures["machine"] = (
        f"{platform.machine()}, {torch.get_num_threads()} CPU threads, torch {torch.__version__}"
    )
    text = json.dumps(figures, indent=1, ensure_ascii=False)
    print(text)
    if args.output:
        args.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
