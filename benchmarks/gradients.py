"""The cost and the error of every way to differentiate the bundled sampler, measured in one run.

    python benchmarks/gradients.py [--steps 10 25 50 100] [--repeats 5] [--trained] [--output docs/gradients.json]

Contenders take turns, round after round, each timed in its second run of a turn; times are medians, and are shown as
ratios to plain backpropagation. The peers are in peers.py; all share one UNet, one noise and one cotangent of
the latents. The error is against the exact gradient of the sampler that the method itself runs: plain autograd
through the same steps (for adaptive dopri5, which has no fixed steps, against DDIM's, so its error includes the
difference of the two samplers; its states are not stored). `live` is the most bytes alive at once in one
gradient, counted by following every storage (weights not included).
"""

import argparse
import gc
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from live import LiveBytes
from peers import Latents, OdeField, by_hand, edict, torchdiffeq_peer, torchsde_peer
from record import write_record
from rounds import rounds
from torch import Tensor

import adjointdpm as adp

PLAIN = "plain backpropagation by hand"


@dataclass
class Contender:
    """A method, the one whose plain gradient is its truth, and what was seen."""

    latents: Latents
    truth: str
    model: OdeField | None = None
    sampler: adp.FlowSampler | None = None
    noise: bool = True
    timed: bool = True


def contenders(
    sampler: adp.FlowSampler, cond: adp.Cond, shape: torch.Size, keep: int
) -> dict[str, Contender]:
    """Everything that is measured at one number of steps."""
    N = sampler.steps
    ours: dict[str, tuple[adp.Adjoint, adp.Solver, str]] = {
        "ours: Checkpointed()": (adp.Checkpointed(), adp.Euler(), PLAIN),
        f"ours: Checkpointed(budget={keep // 10**6} MB)": (
            adp.Checkpointed(budget=keep),
            adp.Euler(),
            PLAIN,
        ),
        "ours: CoarseAdjoint(steps=0.5 N)": (adp.CoarseAdjoint(steps=max(1, N // 2)), adp.Euler(), PLAIN),
        "ours: CoarseAdjoint(steps=0.3 N)": (
            adp.CoarseAdjoint(steps=max(1, round(0.3 * N))),
            adp.Euler(),
            PLAIN,
        ),
        "ours: Reversible(), coupled Euler": (
            adp.Reversible(tolerance=1e9),
            adp.Coupled(adp.Euler()),
            "truth: coupled Euler",
        ),
        "truth: coupled Euler": (adp.Backprop(), adp.Coupled(adp.Euler()), "truth: coupled Euler"),
        "DRaFT-1": (adp.Truncated(last=1), adp.Euler(), PLAIN),
    }

    def of(each: adp.FlowSampler) -> Latents:
        return lambda noise, prompt: each.latents(noise, cond.replace(prompt_embeds=prompt))

    made = {
        PLAIN: Contender(by_hand(sampler, cond, recompute=False), PLAIN),
        "checkpointed loop by hand": Contender(by_hand(sampler, cond, recompute=True), PLAIN),
    }
    for name, (adjoint, solver, truth) in ours.items():
        own = sampler.replace(adjoint=adjoint, solver=solver)
        noise = not isinstance(adjoint, adp.Truncated)
        made[name] = Contender(of(own), truth, None, own, noise, not name.startswith("truth"))
    for name, adaptive in (("paper's release (torchdiffeq, Euler)", False), ("torchdiffeq, dopri5", True)):
        latents, model = torchdiffeq_peer(sampler, cond, adaptive)
        made[name] = Contender(latents, PLAIN, model)
    for name, exact in (("torchsde's adjoint, midpoint", False), ("truth: torchsde", True)):
        latents, model = torchsde_peer(sampler, cond, shape, exact)
        made[name] = Contender(latents, "truth: torchsde", model, timed=not exact)
    made["EDICT, reversed as in DOODL"] = Contender(edict(sampler, cond, exact=False), "truth: EDICT")
    made["truth: EDICT"] = Contender(edict(sampler, cond, exact=True), "truth: EDICT", timed=False)
    return made


class Counter:
    """Calls of the network."""

    def __init__(self, network: Any) -> None:
        self.calls = 0
        network.register_forward_pre_hook(self._count)

    def _count(self, *_: object) -> None:
        self.calls += 1


def gradient(
    each: Contender, noise: Tensor, cond: adp.Cond, cotangent: Tensor, weights: list[Tensor]
) -> list[Tensor]:
    """Of noise, prompt and weights; without the noise where a method has none."""
    x = noise.clone().requires_grad_(each.noise)
    prompt = each.model.prompt if each.model else cond["prompt_embeds"].clone().requires_grad_()
    out = each.latents(x, prompt)
    leaves = [*([x] if each.noise else []), prompt, *weights]
    return list(torch.autograd.grad((out * cotangent).sum(), leaves))


def measured(steps: int, args: argparse.Namespace) -> list[dict[str, object]]:
    """The rows of one number of steps."""
    sampler = adp.load_bundled("emoji", steps=steps, solver=adp.Euler(), guidance_scale=args.guidance_scale)
    sampler.model.denoiser.requires_grad_(args.trained)
    cond, noise = sampler.encode("a red apple on a blue background"), sampler.noise(1, seed=1)
    cotangent = torch.randn(noise.shape, generator=torch.Generator().manual_seed(0))
    weights: list[Tensor] = [p for p in sampler.model.denoiser.parameters() if p.requires_grad]
    counter = Counter(sampler.model.denoiser.network)
    everyone = contenders(sampler, cond, noise.shape, args.budget * 10**6)
    run: Callable[[str], list[Tensor]] = lambda name: gradient(  # noqa: E731
        everyone[name], noise, cond, cotangent, weights
    )
    found, live, calls = {}, {}, {}
    for name in everyone:
        gc.collect()
        before = counter.calls
        with LiveBytes() as bytes_alive:
            found[name] = run(name)
        live[name], calls[name] = bytes_alive.peak, counter.calls - before
    timed = {name: partial(run, name) for name, each in everyone.items() if each.timed}
    seconds = rounds(timed, args.repeats)
    plain = seconds[PLAIN]
    rows: list[dict[str, object]] = []
    for name, each in everyone.items():
        if not each.timed:
            continue
        exact = found[each.truth][:2] if each.noise else found[each.truth][1:2]
        wrong = [float((g - e).norm() / e.norm()) for g, e in zip(found[name], exact, strict=False)]
        cosines = [
            float(torch.cosine_similarity(g.flatten(), e.flatten(), dim=0))
            for g, e in zip(found[name], exact, strict=False)
        ]
        rows.append(
            {
                "steps": steps,
                "method": name,
                "noise_error": wrong[0] if each.noise else None,
                "noise_cosine": cosines[0] if each.noise else None,
                "prompt_error": wrong[-1],
                "prompt_cosine": cosines[-1],
                "bytes_saved": each.sampler.stats.bytes_saved if each.sampler else None,
                "live_bytes": live[name],
                "network_calls": calls[name],
                "seconds": seconds[name],
                "time_ratio": seconds[name] / plain,
            }
        )
    return rows


def shown(row: dict[str, Any]) -> str:
    """One line of the table."""

    def number(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    saved = None if row["bytes_saved"] is None else row["bytes_saved"] / 1e6
    return (
        f"{row['method']:38} {number(row['noise_error'], '9.1e'):>9} {number(row['noise_cosine'], '8.4f'):>8} "
        f"{row['prompt_error']:10.1e} {number(saved, '8.1f'):>8} {row['live_bytes'] / 1e6:8.1f} "
        f"{row['network_calls']:5d} {row['time_ratio']:6.2f}"
    )


def main(argv: list[str]) -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 25, 50, 100])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--trained", action="store_true", help="differentiate the UNet's weights, too")
    parser.add_argument("--guidance_scale", type=float, default=4.0)
    parser.add_argument("--budget", type=int, default=500, help="of Checkpointed(budget=), in MB")
    parser.add_argument("--output", type=Path, default=None)
    args = parser.parse_args(argv)
    rows = []
    for steps in args.steps:
        print(
            f"N = {steps}, guidance {args.guidance_scale}, weights {'trained' if args.trained else 'frozen'}"
        )
        print(
            f"{'method':38} {'noise err':>9} {'cosine':>8} {'prompt err':>10} MB saved  MB live calls   time"
        )
        rows += (found := measured(steps, args))
        print("\n".join(map(shown, found)), flush=True)
        write_record(args.output, "gradients.py", argv, rows=rows)


if __name__ == "__main__":
    main(sys.argv[1:])
