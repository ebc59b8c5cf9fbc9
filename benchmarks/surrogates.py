"""How near the surrogates of a weight gradient are to the exact one, and what they cost.

    OMP_NUM_THREADS=1 python benchmarks/surrogates.py [--steps 25 50] [--seeds 32] [--timed 5] [--minutes 60]
        [--state outputs/surrogates.pt] [--output docs/surrogates.json]

The bundled model, DPM-Solver++(2M), the gradient of the background's colour by a new LoRA, one prompt and one noise a
seed. Cosine and norm ratio are those of each noise's gradient; `mean_cosine` and `mean_norm_ratio` are those of the sum
over all noises, which is what a large batch would see. Seconds and bytes are of the first noises' gradients; of the
others the calls without a graph, which all methods share, are made once.
After each noise the sums are saved to `--state`, and a run that is started again goes on from there.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from record import write_record
from torch import Tensor

import adjointdpm as adp
from adjointdpm.flow.denoisers import Denoiser, WrappedDenoiser
from adjointdpm.tasks.tune.trainable_weights import Lora

EXACT = "Checkpointed()"
PROMPTS = ["a red apple", "a cat", "a yellow star", "a dog", "a house"]


def contenders(N: int) -> dict[str, adp.Adjoint]:
    """Names and adjoints."""
    return {
        EXACT: adp.Checkpointed(),
        "DRaFT-1: Truncated()": adp.Truncated(),
        "DRaFT-3: Truncated(last=3)": adp.Truncated(last=3),
        "DRaFT-LV: Truncated(repeats=4)": adp.Truncated(repeats=4),
        "DRTune()": adp.DRTune(),
        "DRTune(early_stop=0.0)": adp.DRTune(early_stop=0.0),
        "FlowBP()": adp.FlowBP(),
        "FlowBP(rescale=1.0)": adp.FlowBP(rescale=1.0),
        "FlowBP(connector='bridge')": adp.FlowBP(connector="bridge"),
        "FlowBP(connector='lagrange')": adp.FlowBP(connector="lagrange"),
        "LeapAlign()": adp.LeapAlign(),
        "DirectAlign()": adp.DirectAlign(),
        "every call, no Jacobians: FlowBP(steps=N)": adp.FlowBP(steps=N),
    }


class Shared(WrappedDenoiser):
    """A denoiser that makes each call without a graph once."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__(denoiser)
        self.made: dict[tuple[float, bytes], Tensor] | None = None

    def forward(self, x: Tensor, t: Tensor, cond: adp.Cond) -> Tensor:
        if self.made is None or torch.is_grad_enabled():
            return self.denoiser(x, t, cond)
        key = float(t), x.numpy().tobytes()
        if key not in self.made:
            self.made[key] = self.denoiser(x, t, cond)
        return self.made[key].clone()  # a result becomes part of a graph


def gradient(sampler: adp.FlowSampler, weights: list[Tensor], seed: int) -> Tensor:
    """Of the metric by the LoRA's weights, in one vector."""
    metric = adp.metrics.BackgroundColour((0.9, 0.8, 0.2))
    image = sampler(sampler.noise(1, seed), sampler.encode(PROMPTS[seed % len(PROMPTS)]))
    found = torch.autograd.grad(metric(image).sum(), weights, materialize_grads=True)
    return torch.cat([each.flatten() for each in found]).double()


def summary(
    name: str, N: int, rows: list[dict[str, float]], total: Tensor, exact: Tensor, timed: int
) -> dict[str, Any]:
    """Medians and the worst over the noises."""
    cosine, ratio = [row["cosine"] for row in rows], [row["norm_ratio"] for row in rows]
    return {
        "method": name,
        "steps": N,
        "cosine": {"median": statistics.median(cosine), "worst": min(cosine)},
        "norm_ratio": {"median": statistics.median(ratio), "lowest": min(ratio), "highest": max(ratio)},
        "mean_cosine": float(torch.cosine_similarity(total, exact, dim=0)),
        "mean_norm_ratio": float(total.norm() / exact.norm()),
        "bytes_saved": rows[0]["bytes_saved"],
        "calls": rows[0]["calls"],
        "calls_differentiated": rows[0]["calls_differentiated"],
        "seconds": statistics.median(row["seconds"] for row in rows[:timed]),
    }


def main(argv: list[str]) -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, nargs="+", default=[25, 50])
    parser.add_argument("--seeds", type=int, default=32)
    parser.add_argument("--timed", type=int, default=5, help="noises at first whose gradients are timed")
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--guidance_scale", type=float, default=4.0)
    parser.add_argument("--minutes", type=float, default=60, help="no noise is begun after these")
    parser.add_argument("--state", type=Path, default=Path("outputs/surrogates.pt"))
    parser.add_argument("--output", type=Path, default=None)
    args = parser.parse_args(argv)

    begun = time.monotonic()
    sampler = adp.load_bundled("emoji", guidance_scale=args.guidance_scale)
    sampler.requires_grad_(False)
    weights = list(Lora(rank=args.rank).attach(sampler.network, 0).values())
    shared = sampler.model.denoiser = Shared(sampler.model.denoiser)
    settings = [args.steps, args.rank, args.guidance_scale]
    state: dict[str, Any] = {"settings": settings, "done": 0, "rows": {}, "sums": {}}
    if args.state.exists() and (before := torch.load(args.state))["settings"] == settings:
        state = before
    gradient(sampler.replace(steps=2), weights, 0)  # what is prepared once is not timed
    while state["done"] < args.seeds and time.monotonic() - begun < 60 * args.minutes:
        seed = state["done"]
        shared.made = None if seed < args.timed else {}
        for N in args.steps:
            exact = None
            for name, adjoint in contenders(N).items():
                each = sampler.replace(steps=N, adjoint=adjoint)
                torch.manual_seed(seed)  # of DRaFT-LV's copies
                start = time.perf_counter()
                found = gradient(each, weights, seed)
                seconds = time.perf_counter() - start
                exact = found if exact is None else exact
                row = {
                    "cosine": float(torch.cosine_similarity(found, exact, dim=0)),
                    "norm_ratio": float(found.norm() / exact.norm()),
                    "seconds": seconds,
                    "bytes_saved": each.stats.bytes_saved,
                    "calls": each.stats.nfe_forward,
                    "calls_differentiated": each.stats.nfe_backward,
                }
                state["rows"].setdefault((N, name), []).append(row)
                state["sums"][N, name] = state["sums"].get((N, name), 0) + found
        state["done"] += 1
        args.state.parent.mkdir(parents=True, exist_ok=True)
        torch.save(state, args.state.with_suffix(".new"))
        args.state.with_suffix(".new").replace(args.state)
        print(f"{state['done']} of {args.seeds} noises, {time.monotonic() - begun:.0f} s", flush=True)
    rows = [
        summary(
            name, N, state["rows"][N, name], state["sums"][N, name], state["sums"][N, EXACT], args.timed
        )
        for N in args.steps
        for name in contenders(N)
    ]
    for row in rows:
        print(
            f"{row['steps']:3d} {row['method']:42s} cosine {row['cosine']['median']:.3f} / "
            f"{row['cosine']['worst']:.3f}  norm {row['norm_ratio']['median']:.3f}  of the sum "
            f"{row['mean_cosine']:.3f}, {row['mean_norm_ratio']:.3f}  {row['seconds']:.2f} s"
        )
    write_record(
        args.output,
        "surrogates.py",
        argv,
        noises=state["done"],
        asked=args.seeds,
        timed=args.timed,
        rows=rows,
    )


if __name__ == "__main__":
    main(sys.argv[1:])
