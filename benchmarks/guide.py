"""Guided generation on the bundled model: four metrics, three methods at equal denoiser calls, several seeds.

    python benchmarks/guide.py --record docs/guide.json

Aims: better than one-step guidance on at least 3 of 4 metrics, the judge's accuracy no lower than 5 points under it.
"""

import sys

import torch
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
from adjointdpm.tasks.guide import guide


def main() -> None:
    """Run the protocol."""
    parser = flags_of(__doc__, steps=8, prompts=8, noises=2, sampling=12, look_ahead=4)
    parser.add_argument("--metrics", nargs="+", default=["label", "style", "background", "effect"])
    parser.add_argument("--learning_rate", type=float, default=0.1)
    parser.add_argument("--strength", type=float, nargs="+", default=[0.1], help="Each is tried.")
    flags = parser.parse_args()
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
