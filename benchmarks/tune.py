"""Stylisation from one picture on the bundled model: held-out concepts and noise, beside the denoising loss.

    python benchmarks/tune.py --record docs/tune.json

Aims, on held-out concepts and noise: style distance less by 60 %, the judge's concept accuracy at most 10 points lower.
The reference is one picture of the model's own with an effect applied.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from record import write_record

import adjointdpm as adp
from adjointdpm.metrics import EFFECTS, Content, HiddenStates, Style
from adjointdpm.tasks import Lora, TuneSettings, tune


def main() -> None:
    """Run the protocol."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmark"), help="of pages")
    parser.add_argument("--record", type=Path, default=None, help="JSON of the figures")
    parser.add_argument(
        "--styles", nargs="+", default=["sepia", "line drawing", "night"], choices=list(EFFECTS)
    )
    for name, value in (("steps", 120), ("prompts", 8), ("held_out", 24), ("noises", 2), ("sampling", 12)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--layers", type=int, nargs="+", default=[0, 1], help="of the style")
    parser.add_argument("--content_layers", type=int, nargs="+", default=[3])
    parser.add_argument("--content", type=float, default=0.5)
    parser.add_argument("--learning_rate", type=float, default=8e-3)
    parser.add_argument(
        "--budget", default="4GiB", help="of memory for kept graphs: the same gradient, sooner"
    )
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    judge, net, results = adp.load_classifier("emoji/judge"), adp.load_classifier("emoji/resnet"), {}
    features = HiddenStates(net.model, net.normalised, flags.layers)
    # An effect changes shallow features and leaves deep ones nearly alone, so these hold the content.
    content = Content(HiddenStates(net.model, net.normalised, flags.content_layers))
    about = json.loads((adp.zoo.folder("emoji") / "emoji.json").read_text())
    items = list(about["phrases"].items())
    spread = items[:: max(1, len(items) // (flags.prompts + flags.held_out))]
    texts = [f"{phrase} on a blue background" for _, phrase in spread]
    test = slice(flags.prompts, flags.prompts + flags.held_out)
    for name in flags.styles:
        exact = adp.Checkpointed(budget=flags.budget)
        sampler = adp.load("emoji", steps=flags.sampling, guidance_scale=4.0, adjoint=exact)
        with torch.no_grad():
            picture = EFFECTS[name](sampler(sampler.noise(1, 999), sampler.encode(texts[0])).clamp(0, 1))[0]
        style = Style(features, picture)
        found = tune(
            sampler,
            style + flags.content * content,
            texts[: flags.prompts],
            texts[test],
            output=flags.output / f"tune-{name.replace(' ', '-')}",
            weights=Lora(flags.rank),
            settings=TuneSettings(
                flags.steps, flags.learning_rate, flags.batch, noises=flags.noises, seed=flags.seed
            ),
            measures={"style": style, "content": content},
            picture=picture,
            picture_prompt=texts[0],
            judge=judge,
            labels=[label for label, _ in spread[test]],
        )
        results[name] = {way: each.as_dict() for way, each in found.ways.items()}
        for way, each in found.ways.items():
            print(
                f"{name:14} {way:10} style less by {100 * found.reduction('style', way):5.1f} %; {each.judged}"
            )
        write_record(flags.record, "tune.py", sys.argv[1:], styles=results)


if __name__ == "__main__":
    main()
