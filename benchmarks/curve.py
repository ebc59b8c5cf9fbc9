"""How true and how dear a gradient is with fewer backward than forward steps: M -> (error, cosine, seconds).

    python benchmarks/curve.py [--steps 50] [--seeds 32] [--repeats 5] [--output docs/curve.json]

The bundled model, one prompt and one noise a seed, random cotangents of the latents, against the exact
gradient of the sampler that ran. Accuracy is measured on batches of seeds, since samples do not mix; seconds
(`--repeats 0` leaves them out) on one sample with frozen weights, contenders in turn, as ratios of medians to
plain backpropagation.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch
from record import write_record
from torch import Tensor

import adjointdpm as adp

EXACT = ("Backprop()", "Checkpointed()")

PROMPTS = ["a red apple on a blue background", "a cat", "a yellow star", "a dog", "a house"]


def contenders(N: int) -> dict[str, adp.Adjoint]:
    """Names and adjoints."""
    few = {f"Continuous(steps=N/{part})": adp.Continuous(steps=max(1, N // part)) for part in (1, 2, 3, 4)}
    tenths = adp.Continuous(steps=max(1, round(0.3 * N)))
    return {
        "Backprop()": adp.Backprop(),
        "Checkpointed()": adp.Checkpointed(),
        **few,
        "Continuous(steps=0.3 N)": tenths,
        "two-step Adams-Bashforth, N/3": adp.Continuous(steps=max(1, N // 3), solver=adp.AdamsBashforth(2)),
        "paper's form, Euler, stored": adp.Continuous(solver=adp.Euler(), transposed=False),
        "paper's release: Euler, resolved": adp.Continuous(solver=adp.Euler(), trajectory="resolved"),
    }


def gradient(sampler: adp.FlowSampler, noise: Tensor, cond: adp.Cond, cotangent: Tensor) -> list[Tensor]:
    """Of the noise and the prompt."""
    x, prompt = noise.clone().requires_grad_(), cond["prompt_embeds"].clone().requires_grad_()
    out = sampler.latents(x, cond.replace(prompt_embeds=prompt))
    return list(torch.autograd.grad((out * cotangent).sum(), [x, prompt]))


def problem(sampler: adp.FlowSampler, seeds: range) -> tuple[Tensor, adp.Cond, Tensor]:
    """Noise, conditioning and cotangents of some seeds, as a batch."""
    each = [sampler.encode(PROMPTS[seed % len(PROMPTS)]) for seed in seeds]
    cond = adp.Cond(
        {name: torch.cat([c[name] for c in each]) if t.ndim else t for name, t in each[0].items()}
    )
    noise = torch.cat([sampler.noise(1, seed) for seed in seeds])
    draw = [torch.randn(noise[0].shape, generator=torch.Generator().manual_seed(1000 + s)) for s in seeds]
    return noise, cond, torch.stack(draw)


def accuracy(found: Tensor, exact: Tensor) -> tuple[list[float], list[float]]:
    """Relative error and cosine of each sample."""
    g, e = found.flatten(1).double(), exact.flatten(1).double()
    return ((g - e).norm(dim=1) / e.norm(dim=1)).tolist(), torch.cosine_similarity(g, e).tolist()


def main(argv: list[str]) -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--seeds", type=int, default=32)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--guidance_scale", type=float, default=4.0)
    parser.add_argument("--only", default="", help="measure only methods whose name has this in it")
    parser.add_argument("--output", type=Path, default=None)
    args = parser.parse_args(argv)

    sampler = adp.load("emoji", steps=args.steps, guidance_scale=args.guidance_scale)
    sampler.field.denoiser.requires_grad_(False)
    samplers = {
        name: sampler.replace(adjoint=adjoint)
        for name, adjoint in contenders(args.steps).items()
        if args.only in name or name in EXACT
    }
    errors: dict[str, list[list[float]]] = {name: [[], []] for name in samplers}
    cosines: dict[str, list[list[float]]] = {name: [[], []] for name in samplers}
    for first in range(0, args.seeds, args.batch):
        given = problem(sampler, range(first, min(first + args.batch, args.seeds)))
        exact = gradient(samplers["Checkpointed()"], *given)
        for name, each in samplers.items():
            if name in EXACT:
                continue
            for variable, (g, e) in enumerate(zip(gradient(each, *given), exact, strict=True)):
                for store, values in zip((errors, cosines), accuracy(g, e), strict=True):
                    store[name][variable] += values
    seconds: dict[str, list[float]] = {name: [] for name in samplers}
    given = problem(sampler, range(1))
    for turn in range(args.repeats + 1 if args.repeats else 0):
        for name, each in samplers.items():
            start = time.perf_counter()
            gradient(each, *given)
            if turn:
                seconds[name].append(time.perf_counter() - start)
    plain = statistics.median(seconds["Backprop()"]) if args.repeats else None
    rows = []
    for name in samplers:
        row: dict[str, object] = {"method": name}
        for variable, of in enumerate(("noise", "prompt")):
            if errors[name][variable]:
                error, cosine = errors[name][variable], cosines[name][variable]
                row[f"{of}_error"] = {"median": statistics.median(error), "worst": max(error)}
                row[f"{of}_cosine"] = {"median": statistics.median(cosine), "worst": min(cosine)}
        if plain:
            row["time_ratio"] = statistics.median(seconds[name]) / plain
        rows.append(row)
        print(name.ljust(34), *(f"{key} {_shown(value)}" for key, value in row.items() if key != "method"))
    write_record(args.output, "curve.py", argv, rows=rows)


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return " / ".join(f"{v:.4f}" for v in value.values())
    return f"{value:.2f}"


if __name__ == "__main__":
    main(sys.argv[1:])
