"""A token from one image of an effect: distributions of that image's patches, and the content without the token.

    python benchmarks/invert_metric.py --survey --record docs/invert_survey.json
    python benchmarks/invert_metric.py --record docs/invert_metric.json

The image of an effect is one of the model's own, of a cat, with the effect applied. Patches are compared for cats of
other noise alone, so that nothing but the effect brings the images closer to the reference; the content is kept for
some other concepts, too, which shows the token what else it must leave alone. No held-out prompt has a cat or one of
these in it. Aims, on unseen concepts and noise: the style judge names the effect in 80 % and the judge names the
concept in 90 %, for at least 3 of the 4 effects that one image can show. The same effect applied to the images
without the token is what a perfect token would reach, and the model's images of the effect's own word are what some
token does reach. Both judges are part of no loss, the content is compared by a network of another architecture that
sees the coarse shapes alone, and the token never starts from the effect's own word.

`--survey` learns nothing: for candidate metrics it says how many times the own word's value the next lower one is, of
the images without a word and those of the other words. The metric, its settings and those of the optimization were
chosen on other concepts and noise than the protocol's. Started again, the protocol goes on where it
ended: effects in the record are kept, and an effect under way continues from its checkpoint.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from protocol import about, article, flags_of, model
from record import write_record

import adjointdpm as adp
from adjointdpm.files.images import as_8_bit, png
from adjointdpm.metrics import EFFECTS, Content, HiddenStates, SlicedWasserstein, Style, beside
from adjointdpm.metrics.base import Prompted
from adjointdpm.optimization.seeds import key
from adjointdpm.tasks import InvertSettings, MetricGoal, RunOptions, TokenVectors
from adjointdpm.tasks.evaluation import recognized
from adjointdpm.tasks.invert import invert
from adjointdpm.tasks.invert.learned_token import worded
from adjointdpm.tasks.sampling import noise_of, sampled

TOKEN = "<effect>"


def texts_of(concepts: list[tuple[str, str]], place: str) -> list[str]:
    """Return a prompt with the token for each concept."""
    return [f"a {TOKEN} {phrase.removeprefix('an ').removeprefix('a ')}{place}" for _, phrase in concepts]


def reference(sampler: adp.Sampler, effect: str, place: str) -> torch.Tensor:
    """Return the one image of an effect, (3, height, width)."""
    with torch.no_grad():
        cat = sampler(sampler.noise(1, 999), sampler.encode(f"a cat{place}"))
    return EFFECTS[effect](cat.clamp(0, 1))[0]


def shapes(images: torch.Tensor, size: int) -> torch.Tensor:
    """Return images without colors, brightness, contrast and details: their coarse luminance, standardized."""
    weights = torch.tensor([0.299, 0.587, 0.114], device=images.device).view(1, 3, 1, 1)
    gray = (images * weights).sum(1, keepdim=True)
    coarse = torch.nn.functional.interpolate(
        torch.nn.functional.adaptive_avg_pool2d(gray, size), images.shape[-2:], mode="bilinear"
    )
    centered = coarse - coarse.mean((2, 3), keepdim=True)
    deviation = centered.square().mean((2, 3), keepdim=True).add(1e-3).sqrt()
    return (0.5 + 0.2 * centered / deviation).expand(-1, 3, -1, -1)


@dataclass(frozen=True)
class OfCats(Prompted):
    """A metric of the cats' images alone, weighted so that its mean over all prompts is that over the cats."""

    metric: Any
    weight: float

    def for_prompts(self, prompts: Sequence[str]) -> Any:
        cats = torch.tensor([" cat" in prompt for prompt in prompts])

        def values(images: torch.Tensor) -> torch.Tensor:
            rows = cats.to(images.device).expand(len(images)).nonzero()[:, 0]
            found = 0 * images.flatten(1).sum(1)
            if len(rows):
                found = found.index_add(0, rows, self.weight * self.metric(images[rows]))
            return found

        return values


def candidates(device: str) -> dict[str, Any]:
    """Return functions from a reference image to a metric, by the metric's name."""
    found: dict[str, Any] = {
        "colors": lambda image: SlicedWasserstein(image, lambda x: [x]),
        "patches and details": SlicedWasserstein,
    }
    for name, layers in (("resnet", 2), ("bit", 3), ("hgnet", 3), ("poolformer", 2)):
        net = adp.load_classifier(f"emoji/{name}", device=device)
        for layer in range(layers):
            features = HiddenStates(net.model, net.normalized, [layer])
            found[f"Gram, {name} {layer}"] = lambda image, f=features: Style(f, image)
    return found


def survey(flags: Any, place: str, judges: dict[str, Any]) -> dict[str, Any]:
    """Return what the model renders at the effects' own words, and what candidate metrics say of it."""
    sampler = model(flags)
    concepts = list(about["phrases"].items())[3::28]  # none is in the protocol
    texts, noise = texts_of(concepts, place), noise_of(sampler, list(range(7000, 7000 + len(concepts))))
    truth = torch.tensor([judges["concept"].index(label) for label, _ in concepts])
    images = {}
    for word in ("", *EFFECTS):
        with torch.no_grad():
            cond = sampler.encode([worded(text, TOKEN, word) for text in texts])
            images[word] = sampled(sampler, noise, cond, None)
    metrics, found = candidates(flags.device), {}
    for effect, apply in EFFECTS.items():
        image, row = reference(sampler, effect, place), {}
        itself = apply(images[""].clamp(0, 1))
        for name, make in metrics.items():
            metric = make(image)
            with torch.no_grad():
                value = {word: float(metric(each).mean()) for word, each in images.items()}
                row[name] = {"effect itself": float(metric(itself).mean()), "own word": value.pop(effect)}
            row[name] |= {"without": value[""], "next": min(value, key=lambda word: value[word])}
            row[name]["next_value"] = value[row[name]["next"]]
        named = recognized(judges["style"], images[effect], judges["style"].index(effect))
        kept = recognized(judges["concept"], images[effect], truth)
        found[effect] = {
            "metrics": row,
            "own_word_named": named and named.as_dict(),
            "own_word_concept": kept and kept.as_dict(),
        }
        print(f"{effect:13} own word: effect {named}; concept {kept}", flush=True)
        for name, each in row.items():
            ratio = each["next_value"] / each["own word"]
            print(f"    {name:22} next {each['next'] or 'without':12} {ratio:.2f} times", flush=True)
    return found


def sheet(output: Path, rows: int, names: list[str]) -> None:
    """Write the images of all effects in one file: reference, without the token, token, effect itself."""
    parts = [torch.load(output / f"{name}.pt") for name in names]
    blocks = []
    for part in parts:
        lines = [torch.cat(list(each[:rows].clamp(0, 1)), 2) for each in part["rows"]]
        first = torch.ones(3, lines[0].shape[1] * len(lines), part["reference"].shape[2] + 8)
        first[:, : part["reference"].shape[1], :-8] = part["reference"]
        blocks.append(torch.cat([first, torch.cat(lines, 1)], 2))
        blocks.append(torch.ones(3, 8, blocks[-1].shape[2]))
    whole = as_8_bit(torch.cat(blocks[:-1], 1)[None])[0]
    Image.fromarray(whole.permute(1, 2, 0).cpu().numpy()).save(output / "invert_metric.png")


def main() -> None:
    """Run the protocol."""
    parser = flags_of(__doc__, steps=120, prompts=16, held_out=33, noises=1, sampling=8)
    parser.set_defaults(guidance=2.0)
    parser.add_argument(
        "--first", type=int, default=5, help="held out is every seventh concept from this one"
    )
    parser.add_argument("--survey", action="store_true", help="candidate metrics alone")
    order = ["sepia", "line drawing", "blurred", "night", "inverted", "pixel art"]
    parser.add_argument("--effects", nargs="+", default=order)
    parser.add_argument("--background", default="blue", help="color in all prompts; left out if empty")
    parser.add_argument("--content_layers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--content", type=float, default=0.15, help="weight of the content")
    parser.add_argument(
        "--shapes", type=int, default=24, help="size of the coarse luminance that the content sees"
    )
    parser.add_argument("--vectors", type=int, default=1, help="vectors of the new token")
    words = ["a", "gray", "black"]
    parser.add_argument("--initializers", nargs="+", default=words, help="known words, which are screened")
    parser.add_argument(
        "--starts", type=int, default=1, help="words from which a short run is made; 1 for none"
    )
    parser.add_argument("--start_steps", type=int, default=6)
    parser.add_argument("--learning_rate", type=float, default=0.03)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument(
        "--others",
        type=int,
        default=8,
        help="how many of the learning prompts have other concepts than the cat",
    )
    flags = parser.parse_args()
    other = ("effects", "output", "record", "device", "budget", "survey")
    settings = {name: value for name, value in vars(flags).items() if name not in other}
    path: Path | None = flags.record
    record = json.loads(path.read_text()) if path is not None and path.exists() else {}
    figures: dict[str, Any] = {
        "settings": settings,
        "effects": record.get("effects", {}) if record.get("settings") == settings else {},
    }
    place = f" on {article(flags.background)} background" if flags.background else ""
    names = {"concept": "judge", "style": "judge/style"}
    judges = {
        kind: adp.load_classifier(f"emoji/{name}", device=flags.device) for kind, name in names.items()
    }
    if flags.survey:
        found = survey(flags, place, judges)
        write_record(path, "invert_metric.py", sys.argv[1:], effects=found)
        return
    net = adp.load_classifier("emoji/poolformer", device=flags.device)
    content = Content(
        HiddenStates(
            net.model,
            lambda images: net.normalized(shapes(images, flags.shapes)),
            flags.content_layers,
        )
    )
    for effect in [each for each in flags.effects if each not in figures["effects"]]:
        sampler = model(flags)  # loaded anew for each: its tokenizer grows
        concepts = list(about["phrases"].items())  # the first is the cat
        shown = concepts[flags.first :: 7][: flags.held_out]
        several = [each for each in concepts[3::7] if each not in shown][: flags.others]
        cats = concepts[:1] * (flags.prompts - len(several))
        texts = texts_of([*cats, *several, *shown], place)
        held = [text for text in texts[flags.prompts :] for _ in range(flags.noises)]
        truth = torch.tensor(
            [judges["concept"].index(label) for label, _ in shown for _ in range(flags.noises)]
        )
        image = reference(sampler, effect, place)
        style = SlicedWasserstein(image)
        # Divided by what it is without the token, so that one weight of the content fits all effects.
        with torch.no_grad():
            plain = sampler.encode([worded(text, TOKEN, "") for text in texts[: flags.prompts]])
            before = float(
                style(sampler(noise_of(sampler, list(range(500, 500 + flags.prompts))), plain)).mean()
            )
        # The effect's own word is what a person does not have.
        others = [word for word in flags.initializers if word not in effect.split()]
        folder = flags.output / f"invert-metric-{effect.replace(' ', '-')}"
        found = invert(
            sampler,
            TokenVectors(sampler, TOKEN, others, flags.vectors),
            MetricGoal(OfCats((1 / before) * style, flags.prompts / len(cats)) + flags.content * content),
            texts[: flags.prompts],
            texts[flags.prompts :],
            output=folder,
            settings=InvertSettings(
                max_train_steps=flags.steps,
                learning_rate=flags.learning_rate,
                train_batch_size=flags.batch,
                num_validation_images=flags.noises,
                validation_steps=20,
                num_starts=flags.starts,
                start_steps=flags.start_steps,
                seed=flags.seed,
            ),
            judge=judges["style"],
            label=effect,
            run=RunOptions(resume=True),
        )
        (folder / "reference.png").write_bytes(png(as_8_bit(image)))
        report = found.reports["unseen concepts"]
        noise = noise_of(sampler, [key(flags.seed, "unseen concepts", i) for i in range(len(held))])
        with torch.no_grad():
            cond = sampler.encode([worded(text, TOKEN, effect) for text in held])
            spoken = sampled(sampler, noise, cond, flags.batch)
        rows = {
            "without the token": report.before,
            "token": report.after,
            "effect itself": EFFECTS[effect](report.before.clamp(0, 1)),
            "own word": spoken,
        }
        measured: dict[str, Any] = {}
        for name, images in rows.items():
            with torch.no_grad():
                values = [float(f(images).mean()) for f in (style, beside(content, report.before))]
            named = recognized(judges["style"], images, judges["style"].index(effect))
            kept = recognized(judges["concept"], images, truth)
            measured[name] = {
                "style": values[0],
                "content": values[1],
                "effect_named": named and named.as_dict(),
                "concept_named": kept and kept.as_dict(),
            }
            print(
                f"{effect:13} {name:18} style {values[0]:.3f}; effect {named}; concept {kept}", flush=True
            )
        figures["effects"][effect] = {
            "style_before": before,
            "starts": [each.as_dict() for each in found.starts],
            "seconds": found.costs["seconds"],
            "losses": found.losses,
            "images": measured,
            "named": report.named,
        }
        torch.save({"reference": image, "rows": list(rows.values())[:3]}, flags.output / f"{effect}.pt")
        write_record(path, "invert_metric.py", sys.argv[1:], **figures)
    done = [each for each in order if (flags.output / f"{each}.pt").exists()]
    sheet(flags.output, 10, done)


if __name__ == "__main__":
    main()
