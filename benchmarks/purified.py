"""A purified classifier: its gradient against plain autograd, what it costs, and what a wrong gradient hides.

    gradient   relative error to plain autograd in float64 through 100 steps, ODE and SDE; bytes at 100 and 10 steps
    time       one exact gradient against plain autograd's through the same steps, and against N (2f + b), what its
               denoiser calls alone take; of the processor, so that other programs count less
    robust     robust accuracy as five gradients claim it at equal denoiser calls: what is left after the attack, on
               fresh draws of the whole defence, of images of 8 bits; intervals are Wilson's, 95 %; each of --seeds has
               images, noise and attacks of its own, and --record is gone on with: what it holds of the same settings
               is not measured again, so that seeds and gradients can be added one by one

Plain autograd is written out here: encode, noise, step and decode, without this library's samplers and adjoints.
Finished parts of `robust` are kept in --output and not run again.

    python benchmarks/purified.py --record docs/purified.json
    python benchmarks/purified.py --only robust --t 0.1 --images 12 --steps 8 --draws 2 --seeds 1 --balls l2:1
    python benchmarks/purified.py --output outputs/tiny --images 2 --steps 2 --draws 1 --chain 4 --repeats 1
"""

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from protocol import flags_of, spread
from record import write_record
from torch import Tensor

import adjointdpm as adp
from adjointdpm.attacks import Attack, Found, ImageBall, Verdict, judged, surrogate
from adjointdpm.files.images import as_8_bit
from adjointdpm.metrics.image_classifier import Classifier
from adjointdpm.optimization.seeds import forked, key
from adjointdpm.tasks.evaluation import Rate

ALL = ("gradient", "time", "robust")
SOLVERS: dict[str, adp.Solver] = {"ODE": adp.Euler(), "SDE": adp.EulerMaruyama()}
CALLS = {"exact": 3, "continuous": 3, "sde-adjoint": 3, "bpda": 1, "blind": 1}
"""Denoiser calls of a gradient in units of the purification's steps; blind makes none, and gets BPDA's steps."""
KINDS = ("single", "worst", "majority")
ATTACK = ("t", "norm", "eps", "gradient", "steps", "draws")
"""What tells attacks apart; without a gradient it is the defence that nobody attacks."""


def arguments() -> argparse.Namespace:
    """The flags."""
    parser = flags_of(__doc__, images=40, steps=10, draws=4, chain=100, repeats=5, purify=5, votes=9)
    parser.add_argument("--time_chain", type=int, nargs="*", default=[20, 100], help="steps in `time`")
    parser.set_defaults(output=Path("outputs/purified"))
    parser.add_argument("--only", nargs="*", choices=ALL, default=list(ALL), help="parts that are measured")
    parser.add_argument(
        "--t", type=float, nargs="*", default=[0.1, 0.3], help="of the purification, in `robust`"
    )
    parser.add_argument("--image", type=Path, default=None, help="file for a few images that were found")
    parser.add_argument("--balls", nargs="*", default=["linf:8/255"], help="norms and radii")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0], help="in `robust`")
    parser.add_argument(
        "--gradients", nargs="*", choices=[*CALLS], default=[*CALLS], help="in `robust`, in this order"
    )
    return parser.parse_args()


def ball_of(text: str) -> ImageBall:
    """The ball that a text such as linf:8/255 stands for."""
    norm, _, radius = text.partition(":")
    return ImageBall(float(Fraction(radius)), norm)


def defence(solver: adp.Solver, steps: int, t: float, seed: int | None, **settings: Any) -> adp.Purified:
    """A classifier behind the bundled model."""
    dtype = settings.pop("dtype", torch.float32)
    sampler = adp.load_bundled(
        "emoji", dtype=dtype, steps=steps, solver=solver, guidance_scale=1.0, **settings
    )
    classifier = adp.load_classifier("emoji/resnet").to(dtype)
    return adp.Purified(sampler, classifier, t=t, steps=steps, seed=seed)


def by_hand(purified: adp.Purified, images: Tensor, eta: float) -> Tensor:
    """Logits by plain autograd: encode, noise, step and decode, written out."""
    model, seed = purified.sampler.model, purified.seed
    assert isinstance(model, adp.PipelineModel)
    assert seed is not None
    vae = model.pipe.vae
    x0 = vae.encode(2 * images - 1).latent_dist.mode() * vae.config.scaling_factor
    own = key(seed, 0)  # of the first vote
    draw = torch.randn(x0.shape, generator=torch.Generator().manual_seed(own), dtype=x0.dtype)
    schedule, steps = model.schedule, purified.steps
    start = schedule.end + purified.t * (schedule.start - schedule.end)
    times = torch.linspace(float(start), float(schedule.end), steps + 1, dtype=torch.float64)
    alphas, sigmas = schedule.alpha(times), schedule.sigma(times)
    rhos, cond = sigmas / alphas, purified.sampler.encode([""] * len(images))
    y = x0 + rhos[0] * draw
    for i in range(steps):
        x = (alphas[i] * y).to(images.dtype)
        v = model.denoiser(x, times[i], cond)  # the bundled network predicts v = alpha eps - sigma x0
        eps = alphas[i] * v + sigmas[i] * x
        y = y + (1 + eta**2) * (rhos[i + 1] - rhos[i]) * eps
        if eta:
            xi = adp.StepNoise(own).normal(rhos[i], rhos[i + 1], y)
            y = y + eta * (rhos[i] ** 2 - rhos[i + 1] ** 2).sqrt() * xi
    made = vae.decode(alphas[-1] * y / vae.config.scaling_factor).sample / 2 + 0.5
    return purified.classifier(made)


def clean_images(number: int, seed: int) -> tuple[Tensor, Tensor, list[str]]:
    """Images of the bundled model as their files hold them, which the classifier reads right; their labels."""
    sampler = adp.load_bundled("emoji", steps=25, guidance_scale=4.0)
    classifier = adp.load_classifier("emoji/resnet")
    kept: list[tuple[Tensor, int, str]] = []
    for name, phrase in spread(2 * number):
        with torch.no_grad():
            made = sampler(sampler.noise(1, key(seed, "image", name)), sampler.encode([phrase]))
            image = as_8_bit(made).float() / 255
            right = classifier.labels[int(classifier(image).argmax())] == name
        if right:
            kept.append((image, classifier.index(name), name))
        if len(kept) == number:
            break
    return torch.cat([i for i, _, _ in kept]), torch.tensor([y for _, y, _ in kept]), [n for *_, n in kept]


def gradient(flags: argparse.Namespace) -> list[dict[str, Any]]:
    """Figure 1: relative errors, and bytes."""
    rows: list[dict[str, Any]] = []
    image, label, _ = clean_images(1, flags.seed)
    for name, solver in SOLVERS.items():
        saved: list[Any] = []
        for steps in (max(1, flags.chain // 10), flags.chain):
            purified = defence(solver, steps, 0.3, 5, dtype=torch.float64)
            leaf = image.double().requires_grad_()
            (found,) = torch.autograd.grad(purified(leaf)[0, label[0]], leaf)
            saved.append(purified.stats)
        purified = defence(solver, flags.chain, 0.3, 5, dtype=torch.float64)
        leaf = image.double().requires_grad_()
        logits = by_hand(purified, leaf, float(name == "SDE"))
        (plain,) = torch.autograd.grad(logits[0, label[0]], leaf)
        few, many = saved
        rows.append(
            {
                "solver": name,
                "steps": flags.chain,
                "error": float((found - plain).norm() / plain.norm()),
                "bytes": many.bytes_saved,
                "bytes_ratio": many.bytes_saved / few.bytes_saved,
                "states": many.states,
            }
        )
        print(rows[-1], flush=True)
    return rows


def call_costs(purified: adp.Purified, calls: int = 10) -> tuple[float, float]:
    """Seconds of the processor of one denoiser call forward, f, and of its backward pass, b."""
    sampler: Any = purified.sampler
    model, noise = sampler.model, sampler.noise(1)
    cond, t = sampler.encode([""]), torch.tensor(300.0, dtype=torch.float64)
    began = time.process_time()
    with torch.no_grad():
        for _ in range(calls):
            model.denoiser(noise, t, cond)
    forward = (time.process_time() - began) / calls
    began = time.process_time()
    for _ in range(calls):
        leaf = noise.clone().requires_grad_()
        torch.autograd.grad(model.denoiser(leaf, t, cond).sum(), leaf)
    return forward, (time.process_time() - began) / calls - forward


def timing(flags: argparse.Namespace) -> list[dict[str, Any]]:
    """Figure 4: seconds of the processor of one gradient, in turn, beside those of the calls alone."""
    image, label, _ = clean_images(1, flags.seed)
    rows: list[dict[str, Any]] = []
    for n in flags.time_chain:
        ways: dict[str, adp.Adjoint | None] = {
            "plain autograd": None,
            "Checkpointed(keep=all)": adp.Checkpointed(keep=n),
            "Checkpointed()": adp.Checkpointed(),
        }
        spent: dict[str, list[float]] = {name: [] for name in ways}
        made = {
            name: defence(adp.Euler(), n, 0.3, 5, **({} if way is None else {"adjoint": way}))
            for name, way in ways.items()
        }
        calls: list[tuple[float, float]] = []
        for turn in range(flags.repeats + 1):  # the first one warms up
            costs = call_costs(made["plain autograd"])
            for name, purified in made.items():
                leaf = image.clone().requires_grad_()
                began = time.process_time()
                logits = by_hand(purified, leaf, 0.0) if ways[name] is None else purified(leaf)
                torch.autograd.grad(logits[0, label[0]], leaf)
                if turn:
                    spent[name].append(time.process_time() - began)
            if turn:
                calls.append(costs)
        plain, least = spent["plain autograd"], [n * (2 * f + b) for f, b in calls]
        # Ratios are of each turn by itself, since other programs slow down turns, not ways.
        rows += [
            {
                "gradient": name,
                "steps": n,
                "seconds": statistics.median(each),
                "time_ratio": statistics.median(a / b for a, b in zip(each, plain, strict=True)),
                "of_calls": statistics.median(a / b for a, b in zip(each, least, strict=True)),
            }
            for name, each in spent.items()
        ]
        print(*rows, sep="\n", flush=True)
    return rows


def counts(found: Sequence[Verdict], right: Tensor) -> dict[str, dict[str, Any]]:
    """Robust accuracies: of a single draw, of all draws, of the vote; among images that the defence reads right."""
    return {
        name: Rate.of_mask(~torch.cat([getattr(each, name) for each in found])[right]).as_dict()
        for name in KINDS
    }


def pooled(parts: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of one attack, with the images of all its seeds."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for part in parts:
        groups.setdefault(tuple(part[name] for name in ATTACK), []).append(part)
    rows: list[dict[str, Any]] = []
    for group in groups.values():
        row = {name: group[0][name] for name in ATTACK} | {"seeds": [part["seed"] for part in group]}
        for kind in KINDS:
            hits, of = (sum(part[kind][what] for part in group) for what in ("hits", "of"))
            row[kind] = Rate(hits, of).as_dict()
        rows.append(row)
    return rows


def robust(flags: argparse.Namespace, before: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Figure 3: seeds, depths of the defence, norms and gradients; after each part what is known so far.

    A part that `before` holds, measured with the same settings, is not run again.
    """
    settings = {
        **{"images": flags.images, "purification_steps": flags.purify},
        **{"votes": flags.votes, "loss": "margin", "method": "APGD"},
    }
    parts: list[dict[str, Any]] = before.get("parts", []) if before.get("settings") == settings else []
    known = {tuple(part[name] for name in (*ATTACK, "seed")) for part in parts}
    for seed, t in itertools.product(flags.seeds, flags.t):
        wanted = [dict.fromkeys(ATTACK) | {"t": t, "seed": seed}] + [
            {
                **{"t": t, "norm": ball_of(text).norm, "eps": ball_of(text).radius, "gradient": name},
                **{"steps": flags.steps * 3 // CALLS[name], "draws": flags.draws, "seed": seed},
            }
            for text, name in itertools.product(flags.balls, flags.gradients)
        ]
        wanted = [each for each in wanted if tuple(each[name] for name in (*ATTACK, "seed")) not in known]
        if not wanted:
            continue
        images, labels, _ = clean_images(flags.images, seed)
        # All graphs are kept here, which changes no bit; its calls are still counted with their recomputation.
        purified = defence(
            SOLVERS["SDE"], flags.purify, t, None, adjoint=adp.Checkpointed(keep=flags.purify)
        )
        unattacked = judged(purified, images, labels, draws=flags.votes, seed=seed)
        right = ~unattacked.majority
        for given in wanted:
            if given["gradient"] is None:
                parts.append(given | counts([unattacked], torch.ones_like(right)))
            else:
                parts.append(given | counts(attacked(flags, given, purified, images, labels), right))
            print({k: v["share"] if isinstance(v, dict) else v for k, v in parts[-1].items()}, flush=True)
            yield {"settings": settings, "rows": pooled(parts), "parts": parts}


def attacked(
    flags: argparse.Namespace, given: dict[str, Any], purified: adp.Purified, images: Tensor, labels: Tensor
) -> list[Verdict]:
    """Verdicts on fresh draws, ten images at a time."""
    verdicts: list[Verdict] = []
    for number, part in enumerate(torch.arange(len(images)).split(10)):
        x = cell(flags, given, purified, images[part], labels[part], number)
        verdicts.append(
            judged(purified, x, labels[part], draws=flags.votes, seed=key(given["seed"], number))
        )
        ball = ball_of(flags.balls[0])
        wanted = (flags.seeds[0], flags.t[0], ball.norm, ball.radius)
        first = number == 0 and tuple(given[name] for name in ("seed", "t", "norm", "eps")) == wanted
        if first and given["gradient"] == "exact" and flags.image is not None:
            draw_images(flags.image, purified, images[part], x, verdicts[0])
    return verdicts


def cell(
    flags: argparse.Namespace,
    given: dict[str, Any],
    purified: adp.Purified,
    images: Tensor,
    labels: Tensor,
    number: int,
) -> Tensor:
    """What one attack found on a part of a seed's images; from its file, if there is one."""
    seed = given["seed"]
    name = "-".join(str(each) for each in (*given.values(), number))
    about = {**given, "purify": flags.purify, "images": flags.images}
    path: Path = flags.output / f"{name}.json"
    if path.exists():
        kept = json.loads(path.read_text())
        if kept["about"] == about:
            return torch.tensor(kept["levels"], dtype=torch.uint8).view_as(images).float() / 255
    attack = Attack(
        ball=ImageBall(given["eps"], given["norm"]),
        loss="margin",
        steps=given["steps"],
        draws=given["draws"],
        seed=key(seed, number),
    )
    began = time.perf_counter()
    with forked(seed, name):
        found: Found = attack(surrogate(purified, given["gradient"]), images, labels)
    levels = as_8_bit(found.x)
    path.parent.mkdir(parents=True, exist_ok=True)
    seconds = time.perf_counter() - began
    path.write_text(json.dumps({"about": about, "seconds": seconds, "levels": levels.flatten().tolist()}))
    print(f"{name}: {seconds:.0f} s", flush=True)
    return levels.float() / 255


def draw_images(
    path: Path, purified: adp.Purified, before: Tensor, after: Tensor, verdict: Verdict
) -> None:
    """Given images, what was found, and what a purification makes of it."""
    assert isinstance(purified.classifier, Classifier)
    labels = purified.classifier.labels
    chosen = verdict.majority.nonzero()[:, 0].tolist()[:5]
    with torch.no_grad(), forked(0, "draw"):
        clean = purified.purify(after[chosen])
    said = purified.classifier(clean).argmax(1).tolist()
    rows = {"original": before[chosen], "adversarial": after[chosen], "purified": clean.clamp(0, 1)}
    captions = {
        "original": [labels[int(verdict.labels[i])] for i in chosen],
        "purified": [labels[i] for i in said],
    }
    adp.image_grid(rows, captions).save(path)


def main() -> None:
    """Measure."""
    flags = arguments()
    torch.set_num_threads(1)
    figures: dict[str, Any] = {}
    if flags.record is not None and flags.record.exists():  # a part that is not measured stays as it was
        before = json.loads(flags.record.read_text())
        figures = {name: before[name] for name in ALL if name in before}
    parts = {
        "gradient": lambda: [gradient(flags)],
        "time": lambda: [timing(flags)],
        "robust": lambda: robust(flags, figures.get("robust", {})),
    }
    for name in flags.only:
        for found in parts[name]():
            figures[name] = found
            write_record(flags.record, "purified.py", sys.argv[1:], **figures)


if __name__ == "__main__":
    try:
        main()
    except adp.InputError as error:
        print(f"purified.py: {error}", file=sys.stderr)
        sys.exit(2)
