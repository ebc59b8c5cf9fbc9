"""How seconds and bytes grow with the work: steps, images at once, resolution; with fitted exponents.

    python benchmarks/scaling.py [--repeats 5] [--output docs/scaling.json] [--plot docs/scaling.png]

The bundled UNet at guidance 4, frozen, one gradient of noise and prompt; latents only, so that the decoder does not
blur the figures. A figure y = c n^p is a straight line in logarithms; p is its least-squares slope over the larger
half of the sizes, where constants have died away. Bytes are those saved for the backward pass.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from plot import Panel, draw
from record import write_record
from rounds import rounds

import adjointdpm as adp

ADJOINTS: dict[str, Callable[[int], adp.Adjoint]] = {
    "Backprop()": lambda steps: adp.Backprop(),
    "Checkpointed()": lambda steps: adp.Checkpointed(),
    "CoarseAdjoint(steps=N/2)": lambda steps: adp.CoarseAdjoint(steps=max(1, steps // 2)),
}
# What grows, its sizes, and what stays: (steps, batch, side of the latents).
AXES: dict[str, tuple[Sequence[int], Callable[[int], tuple[int, int, int]]]] = {
    "steps": ((4, 8, 16, 32, 64, 128, 200), lambda n: (n, 1, 16)),
    "batch": ((1, 2, 4, 8, 16), lambda n: (8, n, 16)),
    "pixels": ((32, 64, 128, 192), lambda n: (8, 1, n // 4)),
}


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """p of y = c n^p by least squares over the larger half."""
    x, y = (torch.tensor(v[len(v) // 2 :], dtype=torch.float64).log() for v in (sizes, values))
    return float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())


def problem(adjoint: str, steps: int, batch: int, side: int) -> Callable[[], int]:
    """A function that takes one gradient and returns the bytes saved for it."""
    sampler = adp.load_bundled("emoji", steps=steps, solver=adp.Euler(), guidance_scale=4.0)
    sampler = sampler.replace(adjoint=ADJOINTS[adjoint](steps))
    model: Any = sampler.model
    model.latent_shape = (*model.latent_shape[:1], side, side)
    cond, noise = sampler.encode(["a red apple on a blue background"] * batch), sampler.noise(batch)

    def gradient() -> int:
        x, prompt = noise.clone().requires_grad_(), cond["prompt_embeds"].clone().requires_grad_()
        out = sampler.latents(x, cond.replace(prompt_embeds=prompt))
        torch.autograd.grad(out.square().sum(), [x, prompt])
        return int(sampler.stats.bytes_saved or 0)

    return gradient


def main(argv: list[str]) -> None:
    """Measure, print, write JSON and a plot."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, default=None)
    parser.add_argument("--plot", type=Path, default=None)
    args = parser.parse_args(argv)
    rows: list[dict[str, Any]] = []
    for axis, (sizes, of) in AXES.items():
        seconds: dict[str, list[float]] = {name: [] for name in ADJOINTS}
        saved: dict[str, list[float]] = {name: [] for name in ADJOINTS}
        for size in sizes:
            gradients = {name: problem(name, *of(size)) for name in ADJOINTS}
            taken = rounds(gradients, args.repeats)
            for name, gradient in gradients.items():
                seconds[name].append(taken[name])
                saved[name].append(gradient())
        for name in ADJOINTS:
            powers = {"seconds": exponent(sizes, seconds[name]), "bytes": exponent(sizes, saved[name])}
            row = {"axis": axis, "sizes": list(sizes), "adjoint": name}
            rows.append({**row, "seconds": seconds[name], "bytes": saved[name], "exponents": powers})
            print(
                f"{axis:7} {name:22} seconds n^{powers['seconds']:.2f}, bytes n^{powers['bytes']:.2f}; "
                f"at {sizes[-1]}: {seconds[name][-1]:.2f} s, {saved[name][-1] / 1e6:.1f} MB",
                flush=True,
            )
    write_record(args.output, "scaling.py", argv, rows=rows)
    if args.plot:
        draw(args.plot, panels(rows), columns=2)


def panels(rows: list[dict[str, Any]]) -> list[Panel]:
    """Seconds and bytes against each axis."""
    found = []
    for axis in AXES:
        mine = [row for row in rows if row["axis"] == axis]
        for what, key, unit in (("seconds", "seconds", 1.0), ("MB saved", "bytes", 1e6)):
            curves = {row["adjoint"]: (row["sizes"], [v / unit for v in row[key]]) for row in mine}
            found.append(Panel(axis, what, curves))
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
