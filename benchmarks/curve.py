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
from functools import partial
from pathlib import Path
from typing import Any

import torch
from plot import Panel, draw
from record import write_record
from rounds import rounds
from torch import Tensor

import adjointdpm as adp

EXACT = ("Backprop()", "Checkpointed()")
PARTS = (0.2, 0.24, 0.28, 0.3, 0.34, 0.5, 1.0)

PROMPTS = ["a red apple on a blue background", "a cat", "a yellow star", "a dog", "a house"]


def contenders(N: int) -> dict[str, adp.Adjoint]:
    """Names and adjoints."""
    return {
        "Backprop()": adp.Backprop(),
        "Checkpointed()": adp.Checkpointed(),
        **{
            f"CoarseAdjoint(steps={part:g} N)": adp.CoarseAdjoint(steps=max(1, round(part * N)))
            for part in PARTS
        },
        "paper's form, Euler, stored": adp.Continuous(solver=adp.Euler()),
        "paper's release: Euler, resolved": adp.Continuous(solver=adp.Euler(), trajectory="resolved"),
        "Truncated(last=N/4)": adp.Truncated(last=max(1, N // 4)),
        "one step: Truncated(last=1)": adp.Truncated(last=1),
    }


def gradient(sampler: adp.FlowSampler, noise: Tensor, cond: adp.Cond, cotangent: Tensor) -> list[Tensor]:
    """Of the prompt and, where the method has one, the noise."""
    x, prompt = noise.clone(), cond["prompt_embeds"].clone().requires_grad_()
    leaves = [prompt] if isinstance(sampler.adjoint, adp.Truncated) else [prompt, x.requires_grad_()]
    out = sampler.latents(x, cond.replace(prompt_embeds=prompt))
    return list(torch.autograd.grad((out * cotangent).sum(), leaves))


def problem(sampler: adp.FlowSampler, seeds: range) -> tuple[Tensor, adp.Cond, Tensor]:
    """Noise, conditioning and cotangents of some seeds, as a batch."""
    each = [sampler.encode(PROMPTS[seed % len(PROMPTS)]) for seed in seeds]
    cond = adp.Cond(
        {name: torch.cat([c[name] for c in each]) if t.ndim else t for name, t in each[0].items()}
    )
    noise = torch.cat([sampler.noise(1, seed) for seed in seeds])
    draw = [torch.randn(noise[0].shape, generator=torch.Generator().manual_seed(1000 + s)) for s in seeds]
    return noise, cond, torch.stack(draw).to(noise)


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
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", default="", help="measure only methods whose name has this in it")
    parser.add_argument("--output", type=Path, default=None)
    parser.add_argument("--plot", type=Path, default=None)
    args = parser.parse_args(argv)

    sampler = adp.load_bundled(
        "emoji", steps=args.steps, guidance_scale=args.guidance_scale, device=args.device
    )
    sampler.model.denoiser.requires_grad_(False)
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
            for variable, (g, e) in enumerate(zip(gradient(each, *given), exact, strict=False)):
                for store, values in zip((errors, cosines), accuracy(g, e), strict=True):
                    store[name][variable] += values
    given = problem(sampler, range(1))
    runs = {name: partial(gradient, each, *given) for name, each in samplers.items()}
    seconds = rounds(runs, args.repeats)
    saved = {name: each.stats.bytes_saved for name, each in samplers.items()}
    rows = []
    for name in samplers:
        row: dict[str, object] = {"method": name}
        for variable, of in enumerate(("prompt", "noise")):
            if errors[name][variable]:
                error, cosine = errors[name][variable], cosines[name][variable]
                row[f"{of}_error"] = {"median": statistics.median(error), "worst": max(error)}
                row[f"{of}_cosine"] = {"median": statistics.median(cosine), "worst": min(cosine)}
        if seconds:
            row |= {"time_ratio": seconds[name] / seconds["Backprop()"], "bytes_saved": saved[name]}
        rows.append(row)
        print(name.ljust(34), *(f"{key} {_shown(value)}" for key, value in row.items() if key != "method"))
    write_record(args.output, "curve.py", argv, rows=rows)
    if args.plot and seconds:
        draw(args.plot, [_panel(rows, of) for of in ("noise", "prompt")])


def _panel(rows: list[dict[str, Any]], of: str) -> Panel:
    """Error against time: a curve over M, and everybody else."""
    known = [row for row in rows if f"{of}_error" in row and row["method"] != "CoarseAdjoint(steps=1 N)"]
    at = {row["method"]: (row["time_ratio"], row[f"{of}_error"]["median"]) for row in known}
    curve = [place for name, place in at.items() if name.startswith("Continuous")]
    x, y = zip(*curve, strict=True)
    marks = {name: place for name, place in at.items() if not name.startswith("Continuous")}
    title = f"error of the gradient, {of} (median)"
    return Panel(
        "time, plain backpropagation = 1",
        title,
        {"CoarseAdjoint(steps=M)": (x, y)},
        marks,
        ("linear", "log"),
    )


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return " / ".join(f"{v:.4f}" for v in value.values())
    return f"{value:.2f}"


if __name__ == "__main__":
    main(sys.argv[1:])
