"""A token from one image of an effect: the style of that image, and the content without the token, are the metric.

    python benchmarks/invert_metric.py --record docs/invert_metric.json

The image of an effect is one of the model's own, of a concept that is in no prompt, with the effect applied. Aims, on
unseen concepts and noise: the style judge names the effect in 80 % and the judge names the concept in 90 %, for at
least 3 of the 4 effects that one image can show. The same effect applied to the images without the token is what a
perfect token would reach. Both judges are part of no loss, and the
token never starts from the effect's own word. Started again, it goes on where it ended: effects in the
record are kept, and an effect under way continues from its checkpoint.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from protocol import flags_of, model, spread
from record import write_record

import adjointdpm as adp
from adjointdpm.files.images import as_8_bit, png
from adjointdpm.metrics import EFFECTS, Content, HiddenStates, Style, beside
from adjointdpm.tasks import InvertSettings, MetricGoal, RunOptions, TokenVectors
from adjointdpm.tasks.evaluation import recognized
from adjointdpm.tasks.invert import invert
from adjointdpm.tasks.invert.learned_token import worded


def known(path: Path | None, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the effects of a record that was made with the same settings."""
    if path is None or not path.exists():
        return {}
    record = json.loads(path.read_text())
    return record["effects"] if record["settings"] == settings else {}


def best_start(sampler: adp.Sampler, metric: Any, texts: list[str], words: list[str]) -> tuple[str, float]:
    """Return the known word whose images, in place of the token, have the lowest metric, and that metric."""
    noise = torch.cat([sampler.noise(1, 500 + i) for i in range(len(texts))])
    with torch.no_grad():
        before = sampler(noise, sampler.encode([worded(text, "<effect>", "") for text in texts]))
        means = {
            word: float(
                beside(metric, before)(
                    sampler(noise, sampler.encode([worded(text, "<effect>", word) for text in texts]))
                ).mean()
            )
            for word in words
        }
    return min(means.items(), key=lambda each: each[1])


def main() -> None:
    """Run the protocol."""
    parser = flags_of(__doc__, steps=120, prompts=8, held_out=24, noises=1, sampling=8)
    parser.add_argument("--effects", nargs="+", default=["night", "sepia", "line drawing", "inverted"])
    parser.add_argument("--background", default="blue", help="color in all prompts; left out if empty")
    parser.add_argument("--layers", type=int, nargs="+", default=[0], help="of the style")
    parser.add_argument("--content_layers", type=int, nargs="+", default=[3])
    parser.add_argument("--content", type=float, default=1.0, help="weight of the content beside the style")
    parser.add_argument("--vectors", type=int, default=2, help="vectors of the new token")
    words = ["a", "gray", "black", "white", "sepia", "night", "blurred", "inverted", "pixel", "drawing"]
    parser.add_argument(
        "--starts", nargs="+", default=words, help="known words, of which the token starts from one"
    )
    parser.add_argument("--learning_rate", type=float, default=0.03)
    parser.add_argument("--batch", type=int, default=4)
    flags = parser.parse_args()
    settings = {
        name: value
        for name, value in vars(flags).items()
        if name not in ("effects", "output", "record", "device", "budget")
    }
    results = known(flags.record, settings)
    names = ("resnet", "judge", "judge/style")
    net, judge, styles = (adp.load_classifier(f"emoji/{name}", device=flags.device) for name in names)
    features, deep = (
        HiddenStates(net.model, net.normalized, each) for each in (flags.layers, flags.content_layers)
    )
    content = Content(deep)
    place = f" on a {flags.background} background" if flags.background else ""
    concepts = [each for each in spread(flags.prompts + flags.held_out + 1) if each[0] != "cat"]
    concepts = concepts[: flags.prompts + flags.held_out]
    texts = [f"a <effect> {phrase.removeprefix('an ').removeprefix('a ')}{place}" for _, phrase in concepts]
    truth = torch.tensor(
        [judge.index(label) for label, _ in concepts[flags.prompts :] for _ in range(flags.noises)]
    )
    for effect in [each for each in flags.effects if each not in results]:
        sampler = model(flags)  # loaded anew for each: its tokenizer grows
        with torch.no_grad():
            cat = sampler(sampler.noise(1, 999), sampler.encode(f"a cat{place}"))
            image = EFFECTS[effect](cat.clamp(0, 1))[0]
        style = Style(features, image)
        metric = style + flags.content * content
        # The effect's own word is what a person does not have.
        others = [word for word in flags.starts if word not in effect.split()]
        start, lowest = best_start(sampler, metric, texts[:4], others)
        print(f"{effect:13} starts from {start!r}, whose metric is {lowest:.3f}", flush=True)
        folder = flags.output / f"invert-metric-{effect.replace(' ', '-')}"
        found = invert(
            sampler,
            TokenVectors(sampler, "<effect>", start, flags.vectors),
            MetricGoal(metric),
            texts[: flags.prompts],
            texts[flags.prompts :],
            output=folder,
            settings=InvertSettings(
                max_train_steps=flags.steps,
                learning_rate=flags.learning_rate,
                train_batch_size=flags.batch,
                num_validation_images=flags.noises,
                validation_steps=30,
                seed=flags.seed,
            ),
            judge=styles,
            label=effect,
            run=RunOptions(resume=True),
        )
        (folder / "reference.png").write_bytes(png(as_8_bit(image)))
        report = found.reports["unseen concepts"]
        drawn = EFFECTS[effect](report.before.clamp(0, 1))
        rows = {"without the token": report.before, "token": report.after, "effect itself": drawn}
        results[effect] = {
            "start": start,
            "seconds": found.costs["seconds"],
            "losses": found.losses,
            "images": {},
        }
        for name, images in rows.items():
            with torch.no_grad():
                values = [float(f(images).mean()) for f in (style, beside(content, report.before))]
            named = recognized(styles, images, styles.index(effect))
            kept = recognized(judge, images, truth)
            results[effect]["images"][name] = {
                "style": values[0],
                "content": values[1],
                "effect_named": named and named.as_dict(),
                "concept_named": kept and kept.as_dict(),
            }
            print(
                f"{effect:13} {name:18} style {values[0]:.3f}; effect {named}; concept {kept}", flush=True
            )
        results[effect]["named"] = report.named
        write_record(
            flags.record, "invert_metric.py", sys.argv[1:], settings=settings, effects=dict(results)
        )


if __name__ == "__main__":
    main()
