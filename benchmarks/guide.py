"""Guided generation on the bundled model: four metrics, three methods at equal denoiser calls, several seeds.

    python benchmarks/guide.py --record docs/guide.json

Aims: better than one-step guidance on at least 3 of 4 metrics, the judge's accuracy no lower than 5 points under it.
`--calls` is a budget in place of the steps, here of a third of them; `--target_record` gives a look-ahead the metric
that "noise" has in a record as its target; `--memory` is what a look-ahead holds:

    python benchmarks/guide.py --seed 1 --noises 1 --no_baselines --calls 68 --learning_rate 0.3
    python benchmarks/guide.py --trajectory_only --look_ahead 2 --strength 0.05 0.1 --record docs/guide-third.json
    python benchmarks/guide.py --trajectory_only --look_ahead 2 --target_record docs/guide.json
    python benchmarks/guide.py --memory --record docs/guide-memory.json
"""

import argparse
import gc
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from live import LiveBytes
from protocol import flags_of, model, spread
from record import write_record

import adjointdpm as adp
from adjointdpm.metrics import (
    EFFECTS,
    BackgroundColour,
    EffectDistance,
    HiddenStates,
    LogProbability,
    Style,
    beside,
)
from adjointdpm.optimization.seeds import key
from adjointdpm.tasks import GuideSettings, LookAhead
from adjointdpm.tasks.evaluation import Mean, labels_of
from adjointdpm.tasks.guide import guide, guided
from adjointdpm.tasks.methods import Evaluation, MethodResult
from adjointdpm.tasks.sampling import each_of, noise_of, parts, rows, sampled


def memory(flags: argparse.Namespace) -> None:
    """Measure the most bytes alive in one look-ahead of n steps, beside those of a sampling and its gradient."""
    sampler = model(flags).replace(adjoint=adp.Checkpointed())
    noise, cond = sampler.noise(1), sampler.encode("a cat")

    def gradient() -> None:
        leaf = noise.clone().requires_grad_()
        sampler(leaf, cond).mean().backward()

    def peak(work: Callable[[], object]) -> int:
        work()
        gc.collect()
        with LiveBytes() as live:
            work()
        return live.peak

    whole, account = peak(gradient), sampler.stats.bytes_saved
    first = 0.5 / flags.sampling  # before the first step alone
    rows: dict[str, dict[str, float | None]] = {}
    for n in (1, 2, 4, 8):
        ahead = LookAhead(look_ahead=n, last=first)
        look = partial(guided, sampler, lambda images: images.mean((1, 2, 3)), noise, cond, ahead)
        saved, most = look().bytes_saved, peak(look)
        rows[str(n)] = {"peak": most, "saved": saved, "of a sampling": most / whole}
        print(
            f"look-ahead of {n}: {most / 2**20:.1f} MiB, {most / whole:.3f} of a sampling's {whole / 2**20:.1f}"
        )
    figures = {"sampling": {"peak": whole, "saved": account}, "look_ahead": rows}
    write_record(flags.record, "guide.py", sys.argv[1:], memory=figures)


def trajectory(
    sampler: adp.FlowSampler,
    metric: Any,
    prompts: list[str],
    flags: argparse.Namespace,
    name: str,
    ahead: LookAhead,
    judge: Any,
    truth: torch.Tensor,
) -> dict[str, MethodResult]:
    """A look-ahead from the noise that `guide` draws, 8 images at once, beside what it began with."""
    noise = noise_of(sampler, [key(flags.seed, "guide", i) for i in range(len(prompts))])
    cond = sampler.encode(prompts)
    originals = sampled(sampler, noise, cond, 8)
    evaluate = Evaluation({"metric": metric}, prompts, originals, judge, truth, 8)
    made = [
        guided(sampler, beside(metric, originals[part]), noise[part], rows(cond, part), ahead)
        for part in parts(len(prompts), 8)
    ]
    images = torch.cat([each.images for each in made])
    return {
        "no guidance": evaluate(originals, calls=sampler.length),
        name: evaluate(images, calls=made[0].calls),
    }


def look_ahead(flags: argparse.Namespace, metric: str, strength: float) -> tuple[str, LookAhead]:
    """The name of the look-ahead and its settings; its target is a share of what "noise" reached in a record."""
    ahead = LookAhead(flags.look_ahead, strength)
    if flags.target_record is None:
        return "look-ahead", ahead
    methods, *_ = json.loads(flags.target_record.read_text())["metrics"][metric].values()
    target = float(f"{flags.target_share * methods['noise']['reached']['mean']:.4g}")
    return f"look-ahead to {target}", replace(ahead, target=target)


def note(
    flags: argparse.Namespace,
    results: dict[str, dict[str, object]],
    name: str,
    strength: float,
    methods: dict[str, MethodResult],
) -> None:
    """Print what each method reached and add it to the record."""
    reached = {k: Mean.of(each.values["metric"]) for k, each in methods.items()}
    results.setdefault(name, {})[str(strength)] = {
        method: {
            "values": each.values["metric"].tolist(),
            "reached": reached[method].as_dict(),
            "judged": each.judged and each.judged.as_dict(),
            "calls": each.calls,
        }
        for method, each in methods.items()
    }
    for method, each in methods.items():
        print(f"{name:11} {strength:g} {method:20} {reached[method]}; {each.judged}", flush=True)
    write_record(flags.record, "guide.py", sys.argv[1:], metrics=results)


def main() -> None:
    """Run the protocol."""
    parser = flags_of(__doc__, steps=8, prompts=8, noises=2, sampling=12, look_ahead=4)
    parser.add_argument("--metrics", nargs="+", default=["label", "style", "background", "effect"])
    parser.add_argument("--learning_rate", type=float, default=0.1)
    parser.add_argument("--strength", type=float, nargs="+", default=[0.1], help="Each is tried.")
    parser.add_argument(
        "--calls", type=int, default=None, help="Denoiser calls of an image, for the steps."
    )
    parser.add_argument("--coarse_steps", type=int, nargs="*", default=[])
    parser.add_argument("--best_of", type=int, default=1)
    parser.add_argument("--white_noise", action="store_true")
    parser.add_argument("--no_baselines", action="store_true")
    parser.add_argument(
        "--trajectory_only",
        action="store_true",
        help="The look-ahead with one move a step, without the noise.",
    )
    parser.add_argument(
        "--target_record",
        type=Path,
        default=None,
        help='The target of a look-ahead is what "noise" reached here.',
    )
    parser.add_argument("--target_share", type=float, default=0.95, help="The target, as a share of that.")
    parser.add_argument("--memory", action="store_true", help="Measure the bytes of a look-ahead alone.")
    flags = parser.parse_args()
    if flags.memory:
        memory(flags)
        return
    judge, net = (adp.load_classifier(f"emoji/{n}", device=flags.device) for n in ("judge", "resnet"))
    features = HiddenStates(net.model, net.normalized)
    sampler, items = model(flags), spread(flags.prompts)
    with torch.no_grad():
        image = sampler(sampler.noise(1, 999), sampler.encode("a red apple on an orange background"))[0]
    known = {
        "label": LogProbability(net, net.index("red apple")),
        "style": Style(features, image),
        "background": BackgroundColour((0.98, 0.86, 0.29)),
        "effect": EffectDistance(EFFECTS["sepia"]),
    }
    results: dict[str, dict[str, object]] = {}
    for name in flags.metrics:
        for strength in flags.strength:
            if flags.trajectory_only:
                ahead = look_ahead(flags, name, strength)
                phrases = [f"{phrase} on a blue background" for _, phrase in items]
                truth = torch.tensor(labels_of(judge, phrases, [label for label, _ in items]))
                methods = trajectory(sampler, known[name], each_of(phrases, flags.noises), flags, *ahead, judge,
                                     truth.repeat_interleave(flags.noises))  # fmt: skip
                note(flags, results, name, strength, methods)
                continue
            found = guide(
                sampler,
                known[name],
                [f"{phrase} on a blue background" for _, phrase in items],
                output=flags.output / f"guide-{name}-{strength:g}",
                settings=GuideSettings(
                    max_train_steps=flags.steps,
                    learning_rate=flags.learning_rate,
                    ahead=LookAhead(flags.look_ahead, strength),
                    num_validation_images=flags.noises,
                    seed=flags.seed,
                    calls=flags.calls,
                    coarse_steps=tuple(flags.coarse_steps),
                    best_of=flags.best_of,
                    white_noise=flags.white_noise,
                    baselines=not flags.no_baselines,
                ),
                judge=judge,
                labels=[label for label, _ in items],
            )
            note(flags, results, name, strength, found.methods)


if __name__ == "__main__":
    main()
