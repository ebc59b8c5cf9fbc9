"""The audit's protocol on the bundled model: how often can a classifier be misled, and is its label preserved?

For each concept and seed: a start that the audited classifier reads right; its noise moved in an L2 ball of 10 %
of its norm (and of other radii, for the curve); scored on the saved 8-bit images; beside it random noise and
SPSA with as many denoiser calls; transfer to other classifiers. Intervals are Wilson's, 95 %. `--harden` is the number
of steps of each fine-tuning (0 for none), `--rounds` how often it and a new attack take turns, and `--harden_t` where
each of those steps attacks its images. `--elsewhere` attacks the original and the hardened copy on another generator
setting.

    python benchmarks/audit.py --record docs/audit.json
    python benchmarks/audit.py --output outputs/tiny --concepts 3 --steps 4 --sampling 6 --radii
"""

import argparse
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from protocol import about, flags_of, model
from record import write_record

import adjointdpm as adp
from adjointdpm.metrics import HiddenStates
from adjointdpm.optimization.seeds import key
from adjointdpm.tasks import AuditSettings, Ball, HardenSettings, RunOptions, pixels


def arguments() -> argparse.Namespace:
    """The flags."""
    counts = {"concepts": 40, "starts": 1, "steps": 28, "sampling": 12, "batch": 16}
    parser = flags_of(__doc__, **counts, harden=500, rounds=5)
    parser.set_defaults(output=Path("outputs/audit"))
    parser.add_argument("--radius", type=float, default=0.1)
    parser.add_argument("--radii", type=float, nargs="*", default=[0.05, 0.2])
    parser.add_argument("--harden_rate", type=float, default=5e-4, help="learning rate of each fine-tuning")
    parser.add_argument(
        "--harden_variants", type=int, default=3, help="steps to each image's worst variant"
    )
    parser.add_argument("--harden_clean", type=int, default=48, help="clean images a prompt")
    parser.add_argument("--harden_others", type=int, default=4, help="of each prompt that is not audited")
    parser.add_argument("--harden_t", type=float, nargs="*", default=[], help="where each step attacks")
    parser.add_argument("--harden_half", action="store_true", help="compute those attacks in bfloat16")
    parser.add_argument("--harden_batch", type=int, default=48)
    parser.add_argument("--rounds_radius", type=float, default=0.15, help="of the rounds' attacks")
    parser.add_argument("--rounds_steps", type=int, default=8)
    parser.add_argument("--rounds_rate", type=float, default=0.25)
    parser.add_argument("--rounds_starts", type=int, default=1)
    parser.add_argument("--rounds_confidence", type=float, default=5.0)
    parser.add_argument("--calls", type=int, default=None, help="denoiser calls an image, for the steps")
    parser.add_argument("--coarse_steps", type=int, nargs="*", default=[])
    parser.add_argument("--best_of", type=int, default=1)
    parser.add_argument("--white_noise", action="store_true")
    parser.add_argument("--stop_at_success", action="store_true")
    parser.add_argument("--rate", type=float, default=0.25)
    parser.add_argument("--momentum", type=float, default=0.5)
    parser.add_argument("--confidence", type=float, default=0.5)
    parser.add_argument(
        "--keep", default="emoji/hgnet", help="pixels, none, or a classifier whose features are kept"
    )
    parser.add_argument("--keep_weight", type=float, default=1.0)
    parser.add_argument("--classifier", default="emoji/resnet")
    parser.add_argument("--judge", default="emoji/judge")
    parser.add_argument("--transfer", nargs="*", default=["emoji/hgnet", "emoji/poolformer", "emoji/bit"])
    parser.add_argument("--no_controls", action="store_true")
    parser.add_argument(
        "--elsewhere", action="store_true", help="Euler in 16 steps at guidance 2.5, after hardening"
    )
    parser.add_argument("--resume", action="store_true")
    return parser.parse_args()


def main() -> None:
    """Measure."""
    options = arguments()
    draw = torch.Generator().manual_seed(key(options.seed, "concepts"))
    chosen = torch.randperm(len(about["concepts"]), generator=draw)[: options.concepts].tolist()
    sampler = model(options)
    classifier = adp.load_classifier(options.classifier, device=options.device)
    judge = adp.load_classifier(options.judge, device=options.device)
    features = None if options.keep == "none" else pixels
    if options.keep not in ("none", "pixels"):
        kept = adp.load_classifier(options.keep, device=options.device)
        features = HiddenStates(kept.model, kept.normalized, None)
    settings = AuditSettings(
        ball=Ball(options.radius),
        radii=tuple(options.radii),
        num_starts=options.starts,
        max_train_steps=options.steps,
        learning_rate=options.rate,
        momentum=options.momentum,
        confidence=options.confidence,
        keep_weight=options.keep_weight,
        calls=options.calls,
        coarse_steps=tuple(options.coarse_steps),
        best_of=options.best_of,
        white_noise=options.white_noise,
        stop_at_success=options.stop_at_success,
        controls=not options.no_controls,
        train_batch_size=options.batch,
        seed=options.seed,
    )
    audited = partial(
        adp.tasks.audit,
        judge=judge,
        features=features,
        run=RunOptions(
            config={"classifier": options.classifier, "judge": options.judge, "keep": options.keep},
            resume=options.resume,
            repeat=f"python benchmarks/audit.py --output {options.output} (with the settings below)",
        ),
    )
    found = audited(
        sampler,
        classifier,
        [about["phrases"][about["concepts"][i]] for i in chosen],
        [about["concepts"][i] for i in chosen],
        output=options.output,
        settings=settings,
        transfer={name: adp.load_classifier(name, device=options.device) for name in options.transfer},
    )
    print(f"starts read right: {len(found.labels)} of {found.tried} made; costs: {found.costs}")
    named = {"before": found.before, **{f"radius {r:g}": each for r, each in found.curve.items()}}
    for name, each in {**named, **found.controls}.items():
        print(f"{name:14} misclassified {each.success}; label preserved {each.kept}")
    for name, (hits, of) in found.transfer.items():
        print(f"transfer to {name}: {hits} of {of}")
    record = found.as_dict()
    write_record(options.record, "audit.py", sys.argv[1:], audit=record)
    if options.harden:
        again = replace(
            settings,
            ball=Ball(options.rounds_radius),
            num_starts=options.rounds_starts,
            max_train_steps=options.rounds_steps,
            learning_rate=options.rounds_rate,
            confidence=options.rounds_confidence,
            stop_at_success=False,
        )
        hard = adp.tasks.harden(
            found,
            sampler,
            classifier,
            settings,
            HardenSettings(
                rounds=options.rounds,
                steps=options.harden,
                learning_rate=options.harden_rate,
                clean=options.harden_clean,
                clean_others=options.harden_others,
                t=tuple(options.harden_t),
                late_half=options.harden_half,
                batch_size=options.harden_batch,
                variants=options.harden_variants,
                attack=again,
            ),
            judge=judge,
            features=features,
            others={
                about["phrases"][name]: name for i, name in enumerate(about["concepts"]) if i not in chosen
            },
            run=RunOptions(resume=options.resume),
        )
        figures = {"audit": record, "hardening": hard.as_dict()}
        write_record(options.record, "audit.py", sys.argv[1:], **figures)
        print(f"hardening: misclassified {hard.before} -> {hard.after}")
        print(f"misclassified, label preserved {hard.kept_before} -> {hard.kept_after}")
        print(f"clean images read right {hard.clean_before} -> {hard.clean_after}")
        print(f"those of concepts that were not audited {hard.others_before} -> {hard.others_after}")
        if options.elsewhere:
            other = sampler.replace(solver=adp.Euler(), steps=16, guidance_scale=2.5)
            copy = adp.load_classifier(str(hard.folder / "classifier"), device=options.device)
            rates: dict[str, Any] = {}
            for name, each in {"before": classifier, "after": copy}.items():
                there = audited(
                    other,
                    each,
                    found.prompts,
                    found.labels,
                    output=options.output / "elsewhere" / name,
                    settings=replace(settings, radii=(), seed=key(options.seed, "elsewhere")),
                )
                rates[name] = {
                    "after": there.after.as_dict(),
                    "starts": len(there.labels),
                    "tried": there.tried,
                }
                print(f"elsewhere, {name}: misclassified {there.success}; label preserved {there.kept}")
            write_record(options.record, "audit.py", sys.argv[1:], **figures, elsewhere=rates)


if __name__ == "__main__":
    try:
        main()
    except adp.InputError as error:
        print(f"audit.py: {error}", file=sys.stderr)
        sys.exit(2)
