"""The cost of the exact gradients against what they could cost at best, measured in one run.

    python benchmarks/speed.py [--steps 30] [--repeats 5] [--trained] [--output docs/speed.json]

Contenders take turns, round after round, each timed in its second run of a turn; times are medians, and are shown as
ratios to plain backpropagation. Two peers stand beside them (`peers.py`): the loop with `torch.utils.checkpoint`
round the UNet that one would write by hand, and what the paper's release runs (torchdiffeq's
`odeint_adjoint` with Euler steps over rho). All share one UNet, one noise and one cotangent of the latents.
"""

import argparse
import statistics
import sys
import time
from functools import partial
from pathlib import Path

import torch
from peers import Latents, by_hand, torchdiffeq_peer
from record import write_record
from rounds import rounds
from torch import Tensor

import adjointdpm as adp

PLAIN = "plain backpropagation by hand"


def main(argv: list[str]) -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--trained", action="store_true", help="differentiate the UNet's weights, too")
    parser.add_argument("--guidance_scale", type=float, default=4.0)
    parser.add_argument("--output", type=Path, default=None)
    args = parser.parse_args(argv)

    sampler = adp.load_bundled(
        "emoji", steps=args.steps, solver=adp.Euler(), guidance_scale=args.guidance_scale
    )
    sampler.model.denoiser.requires_grad_(args.trained)
    cond = sampler.encode("a red apple on a blue background")
    noise = sampler.noise(1, seed=1)
    cotangent = torch.randn(noise.shape, generator=torch.Generator().manual_seed(0))
    ours: dict[str, adp.FlowSampler] = {
        name: sampler.replace(adjoint=adjoint)
        for name, adjoint in {
            "ours: Checkpointed()": adp.Checkpointed(),
            f"ours: Checkpointed(keep={args.steps})": adp.Checkpointed(keep=args.steps),
            f"ours: CoarseAdjoint(steps={args.steps // 2})": adp.CoarseAdjoint(steps=args.steps // 2),
        }.items()
    }
    paper, model = torchdiffeq_peer(sampler, cond)
    contenders: dict[str, Latents] = {
        PLAIN: by_hand(sampler, cond, recompute=False),
        "checkpointed loop by hand": by_hand(sampler, cond, recompute=True),
        **{
            name: lambda noise, prompt, each=each: each.latents(noise, cond.replace(prompt_embeds=prompt))
            for name, each in ours.items()
        },
        "paper's release (torchdiffeq, Euler)": paper,
    }
    weights = [p for p in sampler.model.denoiser.parameters() if p.requires_grad]
    forward: list[float] = []  # of plain backpropagation, its graph included: the f of f + b
    found: dict[str, list[Tensor]] = {}

    def gradient(name: str) -> None:
        x = noise.clone().requires_grad_()
        prompt = (
            model.prompt if contenders[name] is paper else cond["prompt_embeds"].clone().requires_grad_()
        )
        start = time.perf_counter()
        out = contenders[name](x, prompt)
        if name == PLAIN:
            forward.append(time.perf_counter() - start)
        found[name] = list(torch.autograd.grad((out * cotangent).sum(), [x, prompt, *weights]))

    seconds = rounds({name: partial(gradient, name) for name in contenders}, args.repeats)
    plain, exact = seconds[PLAIN], found[PLAIN]
    # What recomputing every call must cost: (2 f + b) / (f + b), f + b the time of plain backpropagation.
    theory = (plain + statistics.median(forward[1::2])) / plain
    rows = []
    for name in contenders:
        wrong = [float((g - e).norm() / e.norm()) for g, e in zip(found[name][:2], exact[:2], strict=True)]
        cosine = torch.cosine_similarity(found[name][0].flatten(), exact[0].flatten(), dim=0)
        stats = ours[name].stats if name in ours else None
        rows.append(
            {
                "method": name,
                "noise_error": wrong[0],
                "prompt_error": wrong[1],
                "noise_cosine": float(cosine),
                "seconds": seconds[name],
                "time_ratio": seconds[name] / plain,
                "bytes_saved": stats.bytes_saved if stats else None,
            }
        )
    print(
        f"N = {args.steps}, guidance {args.guidance_scale}, weights {'trained' if args.trained else 'frozen'}"
    )
    print(f"{'method':38} {'noise err':>9} {'cosine':>8} {'prompt err':>10} {'time':>6}   MB saved")
    for row in rows:
        megabytes = "-" if row["bytes_saved"] is None else f"{row['bytes_saved'] / 1e6:.1f}"
        print(
            f"{row['method']:38} {row['noise_error']:9.1e} {row['noise_cosine']:8.4f} "
            f"{row['prompt_error']:10.1e} {row['time_ratio']:6.2f}   {megabytes}"
        )
    print(f"recomputing every call, in theory: {theory:.2f}")
    write_record(args.output, "speed.py", argv, theory=theory, rows=rows)


if __name__ == "__main__":
    main(sys.argv[1:])
