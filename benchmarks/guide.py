"""Guided generation on the bundled model: four metrics, three methods at equal denoiser calls, several seeds.

    python benchmarks/guide.py --record docs/guide.json

Aims: better than one-step guidance on at least 3 of 4 metrics, the judge's accuracy no lower than 5 points under it.
`--calls` is a budget in place of the steps, here of a third of them; `--memory` is what a look-ahead holds:

    python benchmarks/guide.py --calls 68 --record docs/guide-third.json
    python benchmarks/guide.py --memory --record docs/guide-memory.json
"""

import argparse
import gc
import sys
from collections.abc import Callable
from functools import partial

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
)
from adjointdpm.tasks import GuideSettings, LookAhead
from adjointdpm.tasks.evaluation import Mean
from adjointdpm.tasks.guide import guide, guided


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
            reached = {k: Mean.of(each.values["metric"]) for k, each in found.methods.items()}
            results.setdefault(name, {})[str(strength)] = {
                method: {
                    "values": each.values["metric"].tolist(),
                    "reached": reached[method].as_dict(),
                    "judged": each.judged and each.judged.as_dict(),
                    "calls": each.calls,
                }
                for method, each in found.methods.items()
            }
            for method, each in found.methods.items():
                print(f"{name:11} {strength:g} {method:12} {reached[method]}; {each.judged}")
            write_record(flags.record, "guide.py", sys.argv[1:], metrics=results)


if __name__ == "__main__":
    main()
