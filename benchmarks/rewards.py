"""Does tuning to a reward work, with which gradient, where is it hacked, and what does a step cost?

    OMP_NUM_THREADS=1 python benchmarks/rewards.py [--parts rates tuning hacking cost] [--seeds 3] [--calls 1536]
        [--minutes 60] [--state outputs/rewards.pt] [--output docs/rewards.json]
        [--images docs/rewards.png] [--plot docs/rewards-curves.png]

The bundled model, DPM-Solver++(2M), guidance 4, a LoRA of rank 4, Adam, a cosine learning rate, the last weights (none
are chosen). `tuning`: every gradient has the same number of denoiser calls, forward and backward, in all its steps;
images of held-out prompts and noise are measured by the trained reward, by a judge of other data and
architecture, by a classifier (is the concept there?) and by the distance between two noises of one prompt in the
classifier's features. `rates` chooses the learning rate of each gradient first, on prompts that are neither trained on
nor held out, and on a seed of their own: rates are tried from the lowest on, as long as each raises the trained reward
and the concept is recognized in at most 2 points less of the images than without tuning; the last of these is taken.
`hacking`: the curves of reward and judge over the steps, without and with guards. `cost`: a step of `tune` beside a
hand-written loop of DRaFT-K, in interleaved rounds. It is saved after each run, and when it is started again it goes on
from there. What --output holds of other rewards and parts is kept where its settings are the same. `--images` and
`--plot` are written for each reward, with its name after theirs. `--seeds`, `--calls` and the prompts say how small
this is.
"""

import argparse
import json
import statistics
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from protocol import about
from record import write_record
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import adjointdpm as adp
from adjointdpm.adjoints.saved_bytes import SavedBytes, addresses
from adjointdpm.files.images import as_8_bit
from adjointdpm.metrics import for_prompts
from adjointdpm.metrics.rewards import ClipScore
from adjointdpm.optimization.loop import LoopSettings, RunOptions, optimize
from adjointdpm.optimization.seeds import key
from adjointdpm.tasks.sampling import noise_of
from adjointdpm.tasks.tune.adjoint_matching import AdjointMatching
from adjointdpm.tasks.tune.reference_distance import ReferenceDistance
from adjointdpm.tasks.tune.trainable_weights import Lora
from adjointdpm.tasks.tune.tune_to_metric import TuneToMetric


@dataclass(frozen=True)
class Method:
    """A way to tune, and its denoiser calls for one image's gradient, forward and backward."""

    adjoint: adp.Adjoint
    calls: int
    guards: ReferenceDistance = ReferenceDistance()  # noqa: RUF009, it is frozen
    matching: AdjointMatching | None = None


def methods(N: int, kl: float) -> dict[str, Method]:
    """Names and ways; the exact gradient keeps all graphs, which costs memory and no recomputation."""
    exact = adp.Checkpointed(keep=N)
    return {
        "exact": Method(exact, 2 * N),
        "exact + KL": Method(exact, 2 * N + 3, ReferenceDistance(kl_weight=kl)),
        "DRaFT-1": Method(adp.Truncated(), N + 2),
        "DRaFT-LV": Method(adp.Truncated(repeats=2), N + 6),
        "DRTune": Method(adp.DRTune(), N + 6),
        "FlowBP-Lagrange": Method(adp.FlowBP(connector="lagrange"), N + 8),
        "LeapAlign": Method(adp.LeapAlign(), N + 4),
        "Direct-Align": Method(adp.DirectAlign(), N + 3),
        "adjoint matching": Method(exact, 3 * N + 12, matching=AdjointMatching(1 / kl, 4)),
    }


class Last(TuneToMetric):
    """A tuning whose last weights are its result."""

    def validate(self, step: int) -> float:
        if self.validated is not None:
            self.validated(step)
        return -float(step)


class Bench:
    """The prompts, the rewards and what is measured."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        colours = list(about["colours"])
        items = list(about["phrases"].items())
        order = torch.randperm(len(items), generator=torch.Generator().manual_seed(0)).tolist()

        def part(first: int, number: int) -> list[tuple[str, str]]:
            """So many labels and prompts; no concept is in two parts."""
            chosen = [items[i] for i in order[first : first + number]]
            return [
                (label, f"{phrase} on a {colours[i % len(colours)]} background")
                for i, (label, phrase) in enumerate(chosen)
            ]

        self.prompts = [text for _, text in part(0, args.prompts)]
        self.judge = adp.load_classifier("emoji/judge")
        # Two noises a prompt.
        self.sets = {
            "held out": [each for each in part(args.prompts, args.held_out) for _ in range(2)],
            "validation": [
                each for each in part(args.prompts + args.held_out, args.validation) for _ in range(2)
            ],
        }
        self.features = adp.metrics.HiddenStates(self.judge.model, self.judge.normalized, [-1])
        self.rewards = {
            "preference": (
                adp.zoo.load_preference("emoji/preference"),
                adp.zoo.load_preference("emoji/judge/preference"),
            ),
            "clip": tuple(
                ClipScore(*adp.zoo.load_clip(name)) for name in ("emoji/clip", "emoji/judge/clip")
            ),
        }

    def images(self, sampler: adp.FlowSampler, which: str = "held out") -> Tensor:
        """Images of a set of prompts, as their files hold them."""
        texts = [text for _, text in self.sets[which]]
        noise = noise_of(sampler, [key(self.args.seed, which, i) for i in range(len(texts))])
        with torch.no_grad():
            made = [
                sampler(noise[i : i + 16], sampler.encode(texts[i : i + 16]))
                for i in range(0, len(noise), 16)
            ]
        return as_8_bit(torch.cat(made)).float() / 255

    def values(self, images: Tensor, reward: str, which: str = "held out") -> dict[str, Tensor]:
        """What is measured of each image, or of each pair of a prompt's images."""
        labels, texts = zip(*self.sets[which], strict=True)
        with torch.no_grad():
            score, judge = (-for_prompts(each, list(texts))(images) for each in self.rewards[reward])
            truth = torch.tensor([self.judge.index(label) for label in labels])
            right = (self.judge(images).argmax(1) == truth).double()
            (hidden,) = self.features(images)
        pooled = hidden.flatten(2).mean(2)
        apart = (pooled[0::2] - pooled[1::2]).norm(dim=1)
        return {"reward": score, "judge": judge, "concept": right, "diversity": apart}

    def measured(
        self, images: Tensor, reward: str, which: str = "held out", than: Tensor | None = None
    ) -> dict[str, Any]:
        """Each value's mean and standard error; with the judge's of the untuned images, also those of its gain."""
        found = self.values(images, reward, which)
        if than is not None:
            found["judge_gain"] = found["judge"] - than
        return {
            name: {"mean": float(v.mean()), "error": float(v.std() / len(v) ** 0.5)}
            for name, v in found.items()
        }

    def tuned(
        self,
        reward: str,
        way: Method,
        steps: int,
        seed: int,
        rate: float,
        watch: int = 0,
        ema: float | None = None,
    ) -> tuple[adp.FlowSampler, list[dict[str, Any]], float]:
        """A tuned sampler, the curve of its held-out measures, and seconds."""
        args = self.args
        sampler = adp.load_bundled("emoji", steps=args.sampling, guidance_scale=4.0, adjoint=way.adjoint)
        sampler.requires_grad_(False)
        leaves = Lora(4).attach(sampler.network, seed)
        curve: list[dict[str, Any]] = []

        def note(step: int) -> None:
            if watch:
                curve.append({"step": step} | self.measured(self.images(sampler), reward))
                print(
                    step, {k: round(v["mean"], 3) for k, v in curve[-1].items() if k != "step"}, flush=True
                )

        task = Last(
            sampler, self.rewards[reward][0], self.prompts, leaves, seed, args.batch,
            guards=way.guards, matching=way.matching, validated=note,
        )  # fmt: skip
        loop = LoopSettings(
            steps=steps, batch_size=args.batch, max_grad_norm=1.0, decay="constant" if watch else "cosine", seed=seed,
            validation_steps=watch or steps, ema_decay=ema, run=RunOptions(quiet=True),
        )  # fmt: skip
        start = time.perf_counter()
        optimize(task, lambda v: torch.optim.Adam(v, rate), loop)
        return sampler, curve, time.perf_counter() - start


def cost(bench: Bench, rounds: int) -> list[dict[str, Any]]:
    """Seconds and saved bytes of a step of `tune`, and of a hand-written loop, on the same model, batch and noise."""
    N = bench.args.sampling
    return [
        cost_of(bench, rounds, "DRaFT-2, calls and decoder recomputed", adp.Truncated(last=2), 2, True),
        cost_of(bench, rounds, "every call, nothing recomputed", adp.Backprop(), N, False),
    ]


def cost_of(
    bench: Bench, rounds: int, name: str, adjoint: adp.Adjoint, last: int, recomputed: bool
) -> dict[str, Any]:
    """One comparison: the last calls have a graph. Seconds are the processor's, since others use the machine."""
    args = bench.args
    reward = bench.rewards["preference"][0]
    sampler = adp.load_bundled("emoji", steps=args.sampling, guidance_scale=4.0, adjoint=adjoint)
    sampler.requires_grad_(False)
    leaves = Lora(4).attach(sampler.network, 0)
    task = TuneToMetric(sampler, reward, bench.prompts, leaves, 0, args.batch)
    unet: Any = sampler.network
    vae = sampler.pipe.vae
    optimizer = torch.optim.Adam(leaves.values(), 1e-4)
    grid = [sampler.model.schedule.at(t.reshape(1))[0] for t in sampler.times()]
    items = list(range(args.batch))

    def predicted(x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        return unet(x, t, encoder_hidden_states=text).sample

    def decoded(x: Tensor) -> Tensor:
        return vae.decode(x / vae.config.scaling_factor).sample / 2 + 0.5

    def run(function: Any, *tensors: Tensor) -> Tensor:
        return checkpoint(function, *tensors, use_reentrant=False) if recomputed else function(*tensors)

    def by_hand(step: int) -> None:
        x = noise_of(sampler, [key(0, "tune", f"step {step}", i) for i in items])
        cond = task.cond.map(lambda each: each[items] if each.ndim else each)
        text = torch.cat([cond["negative_prompt_embeds"], cond["prompt_embeds"]])
        before = None
        for i, (now, then) in enumerate(pairwise(grid)):
            with torch.set_grad_enabled(i >= len(grid) - 1 - last):
                t, both = now.t.float().expand(2 * len(x)), torch.cat([x, x])
                negative, positive = run(predicted, both, t, text).chunk(2)
                eps = sampler.model.denoiser.prediction.eps(negative + 4.0 * (positive - negative), x, now)
                x0 = (x - now.sigma * eps) / now.alpha
                h = then.log_snr_half - now.log_snr_half
                ahead = x0 if before is None else x0 + (x0 - before[0]) * (h / (2 * before[1]))
                x = (then.sigma / now.sigma) * x - then.alpha * torch.expm1(-h) * ahead
                before = x0, h
        optimizer.zero_grad()
        for_prompts(reward, bench.prompts[: args.batch])(run(decoded, x)).mean().backward()

    def ours(step: int) -> None:
        values = task.losses(step, items).values
        found = torch.autograd.grad(values.mean(), list(leaves.values()))
        for leaf, gradient in zip(leaves.values(), found, strict=True):
            leaf.grad = gradient

    seconds: dict[str, list[float]] = {"by hand": [], "tune": []}
    peak: dict[str, int | None] = {}
    gradients: dict[str, Tensor] = {}
    for i in range(rounds + 1):
        for who, step in (("by hand", by_hand), ("tune", ours)):
            start = time.process_time()
            if i == 0:  # what is prepared once is not timed; bytes are counted here
                with (
                    SavedBytes(addresses(list(sampler.parameters())))
                    if who == "by hand"
                    else nullcontext() as held
                ):
                    step(i)
                peak[who] = sampler.stats.bytes_saved if held is None else held.bytes
                if recomputed:  # what torch's checkpoint makes again is not counted
                    peak["by hand"] = None
                gradients[who] = torch.cat(
                    [leaf.grad.flatten() for leaf in leaves.values() if leaf.grad is not None]
                )
                continue
            step(i)
            torch.nn.utils.clip_grad_norm_(leaves.values(), 1.0)
            optimizer.step()
            seconds[who].append(time.process_time() - start)
    ratios = [a / b for a, b in zip(seconds["tune"], seconds["by hand"], strict=True)]
    apart = gradients["tune"] - gradients["by hand"]
    return {
        "method": name,
        "rounds": rounds,
        "gradients_apart": float(apart.norm() / gradients["by hand"].norm()),
        "seconds": {who: statistics.median(each) for who, each in seconds.items()},
        "ratio": {"median": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios)},
        "bytes_saved": peak,
    }


def parted(curve: list[dict[str, Any]]) -> int | None:
    """The step of the judge's best, if the reward rises from there on and the judge's falls by its standard error."""
    best = max(curve, key=lambda row: row["judge"]["mean"])
    last = curve[-1]
    falls = last["judge"]["mean"] < best["judge"]["mean"] - best["judge"]["error"]
    return best["step"] if falls and last["reward"]["mean"] > best["reward"]["mean"] else None


def plot(path: Path, curves: dict[str, Any]) -> None:
    """The curves of reward and judge, without and with the guards."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        1, len(curves), figsize=(4.2 * len(curves), 3.4), squeeze=False, sharey=True
    )
    for axis, (name, each) in zip(axes[0], curves.items(), strict=True):
        steps = [row["step"] for row in each["curve"]]
        for what, text in (("reward", "trained reward"), ("judge", "judge, in no loss")):
            mean = torch.tensor([row[what]["mean"] for row in each["curve"]])
            error = torch.tensor([row[what]["error"] for row in each["curve"]])
            axis.plot(steps, mean, label=text)
            axis.fill_between(steps, mean - error, mean + error, alpha=0.2)
        if each["parted"] is not None:
            axis.axvline(each["parted"], color="gray", linestyle=":")
        axis.set(title=name, xlabel="step")
    axes[0, 0].set_ylabel("on held-out prompts")
    axes[0, 0].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def grid(path: Path, images: dict[str, Tensor]) -> None:
    """Images of equal prompts and noise, a row for each method."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(len(images), 1, figsize=(5.4, 0.78 * len(images)), squeeze=False)
    for axis, (name, each) in zip(axes[:, 0], images.items(), strict=True):
        axis.imshow(torch.cat(list(each), dim=2).permute(1, 2, 0).numpy())
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
        axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
    figure.tight_layout(pad=0.3)
    figure.savefig(path, dpi=100, bbox_inches="tight")


def kept(path: Path | None, record: dict[str, Any]) -> dict[str, Any]:
    """A record with what an earlier one, of the same settings, holds of other rewards and parts."""
    if path is None or not path.exists():
        return record
    before = json.loads(path.read_text())
    if before["settings"] != record["settings"]:
        return record
    rows: dict[str, list[dict[str, Any]]] = {}
    for name in ("runs", "rates"):
        measured = {row["tuned_to"] for row in record[name]}
        rows[name] = [row for row in before[name] if row["tuned_to"] not in measured] + record[name]
    cost = record["cost"] or before["cost"]
    return record | rows | {"hacking": before["hacking"] | record["hacking"], "cost": cost}


def main(argv: list[str]) -> None:
    """Run what is not done yet."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", default=["rates", "tuning", "hacking", "cost"])
    parser.add_argument("--rewards", nargs="+", default=["preference", "clip"])
    for name, value in {
        "seeds": 3,
        "seed": 0,
        "calls": 1536,
        "sampling": 8,
        "prompts": 64,
        "held_out": 64,
        "validation": 32,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    for name, value in {"batch": 4, "hacking_steps": 80, "watch": 10, "rounds": 15}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument(
        "--rates", type=float, nargs="+", default=[1e-3, 3e-3, 1e-2, 3e-2], help="one is chosen"
    )
    parser.add_argument("--learning_rate", type=float, default=6e-3, help="of the curves")
    parser.add_argument("--hacked", nargs="+", default=["preference"], help="rewards of the curves")
    parser.add_argument("--kl", type=float, default=0.01)
    parser.add_argument(
        "--guards", type=float, nargs="+", default=[0.05, 0.01], help="kl_weight of each curve"
    )
    parser.add_argument("--minutes", type=float, default=60, help="no run is begun after these")
    parser.add_argument("--state", type=Path, default=Path("outputs/rewards.pt"))
    parser.add_argument("--output", type=Path, default=None)
    parser.add_argument("--plot", type=Path, default=None, help="of the curves")
    parser.add_argument("--images", type=Path, default=None, help="at equal prompts and noise")
    args = parser.parse_args(argv)

    begun, bench = time.monotonic(), Bench(args)
    names = (
        "calls",
        "sampling",
        "prompts",
        "held_out",
        "validation",
        "batch",
        "hacking_steps",
        "watch",
        "learning_rate",
        "rates",
        "kl",
    )
    settings = {name: getattr(args, name) for name in names}
    state: dict[str, Any] = {
        "settings": settings,
        "rates": {},
        "runs": {},
        "curves": {},
        "cost": None,
        "images": {},
    }
    if args.state.exists() and (before := torch.load(args.state))["settings"] == settings:
        state = before
    args.state.parent.mkdir(parents=True, exist_ok=True)

    def save() -> None:
        torch.save(state, args.state.with_suffix(".new"))
        args.state.with_suffix(".new").replace(args.state)

    def late() -> bool:
        return time.monotonic() - begun > 60 * args.minutes

    ways = methods(args.sampling, args.kl)
    plain = adp.load_bundled("emoji", steps=args.sampling, guidance_scale=4.0)
    untuned = {which: bench.images(plain, which) for which in bench.sets}

    without = {
        (reward, which): bench.values(untuned[which], reward, which)
        for reward in args.rewards
        for which in bench.sets
    }

    def run(reward: str, name: str, seed: int, rate: float, which: str) -> tuple[dict[str, Any], Tensor]:
        """A row of measures at equal calls, and the images."""
        steps = max(1, round(args.calls / (args.batch * ways[name].calls)))
        sampler, _, seconds = bench.tuned(reward, ways[name], steps, seed, rate)
        images = bench.images(sampler, which)
        row = bench.measured(images, reward, which, without[reward, which]["judge"])
        means = {what: round(each["mean"], 3) for what, each in row.items()}
        print(which, reward, name, seed, rate, f"{seconds:.0f} s", means, flush=True)
        return row | {"rate": rate, "steps": steps, "seconds": seconds}, images

    def chosen(reward: str, name: str) -> float | None:
        """The learning rate; None where one that is to be tried was not."""
        least = float(without[reward, "validation"]["concept"].mean()) - 0.02
        best: dict[str, Any] | None = None
        for rate in args.rates:
            if (reward, name, rate) not in state["rates"]:
                if late() or "rates" not in args.parts:
                    return None
                row, _ = run(reward, name, args.seed + 1000, rate, "validation")
                state["rates"][reward, name, rate] = row
                save()
            row = state["rates"][reward, name, rate]
            lower = best is not None and row["reward"]["mean"] < best["reward"]["mean"]
            if lower or row["concept"]["mean"] < least:
                break
            best = row
        return args.rates[0] if best is None else best["rate"]

    tuned = {(reward, name): chosen(reward, name) for reward in args.rewards for name in ways}
    print({each: rate for each, rate in tuned.items() if rate is not None}, flush=True)
    for seed in range(args.seeds if "tuning" in args.parts else 0):
        for reward in args.rewards:
            state["runs"].setdefault((reward, "untuned", 0), bench.measured(untuned["held out"], reward))
            state["images"].setdefault((reward, "untuned"), as_8_bit(untuned["held out"][:12:2]))
            for name in ways:
                rate = tuned[reward, name]
                if rate is None or (reward, name, seed) in state["runs"] or late():
                    continue
                row, images = run(reward, name, seed, rate, "held out")
                state["runs"][reward, name, seed] = row
                state["images"].setdefault((reward, name), as_8_bit(images[:12:2]))
                save()
    guarded = {
        "no guard": (ways["exact"], None),
        **{
            f"KL {kl:g}, norm, average": (
                replace(ways["exact"], guards=ReferenceDistance(kl_weight=kl, norm_weight=1.0)),
                0.9,
            )
            for kl in args.guards
        },
    }
    for reward in args.hacked if "hacking" in args.parts else ():
        for name, (way, ema) in guarded.items():
            if (reward, name) not in state["curves"] and not late():
                _, curve, _ = bench.tuned(
                    reward, way, args.hacking_steps, 0, args.learning_rate, args.watch, ema
                )
                state["curves"][reward, name] = curve
                save()
    if "cost" in args.parts and not late():
        state["cost"] = cost(bench, args.rounds)
        save()
        print(state["cost"])
    record = {
        "settings": settings,
        "runs": [
            {"tuned_to": reward, "method": name, "seed": seed} | row
            for (reward, name, seed), row in state["runs"].items()
        ],
        "rates": [
            {"tuned_to": reward, "method": name, "chosen": rate == tuned.get((reward, name))} | row
            for (reward, name, rate), row in state["rates"].items()
        ],
        "hacking": {
            f"{reward}, {name}": {"parted": parted(curve), "curve": curve}
            for (reward, name), curve in state["curves"].items()
        },
        "cost": state["cost"],
    }
    write_record(args.output, "rewards.py", argv, **kept(args.output, record))
    for reward in args.rewards:
        made = {name: each for (of, name), each in state["images"].items() if of == reward}
        if args.images is not None and made:
            grid(args.images.with_stem(f"{args.images.stem}-{reward}"), made)
    for reward in args.hacked:
        first = f"{reward}, "
        curves = {
            name.removeprefix(first): each
            for name, each in record["hacking"].items()
            if name.startswith(first)
        }
        if args.plot is not None and curves:
            plot(args.plot.with_stem(f"{args.plot.stem}-{reward}"), curves)


if __name__ == "__main__":
    main(sys.argv[1:])
