"""The cost of the exact gradients against what they could cost at best, measured in one run.

    python benchmarks/speed.py [--steps 30] [--repeats 5] [--trained] [--output docs/speed.json]

Contenders take turns, round after round, after one round of warm-up; times are medians, and are shown as
ratios to plain backpropagation. Two peers are written out here: the loop with `torch.utils.checkpoint`
round the UNet that one would write by hand, and what the paper's release runs (torchdiffeq's
`odeint_adjoint` with Euler steps over rho). All share one UNet, one noise and one cotangent of the latents.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchdiffeq import odeint_adjoint

import adjointdpm as adp
from adjointdpm.grids import TimeGrid

Latents = Callable[[Tensor, Tensor], Tensor]


def guided(sampler: adp.FlowSampler, cond: adp.Cond) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The guided UNet, as one would write it."""
    unet: Any = sampler.field.denoiser.network
    w = cond["guidance_scale"]

    def eps(x: Tensor, t: Tensor, prompt: Tensor) -> Tensor:
        text = torch.cat([cond["negative_prompt_embeds"], prompt])
        out = unet(torch.cat([x, x]), t, encoder_hidden_states=text, return_dict=False)[0]
        unguided, aimed = out.chunk(2)
        time = sampler.field.schedule.at(t.double().reshape(1))[0]
        return sampler.field.denoiser.prediction.eps(unguided + w * (aimed - unguided), x, time)

    return eps


def by_hand(sampler: adp.FlowSampler, cond: adp.Cond, recompute: bool) -> Latents:
    """DDIM as a loop; with `recompute`, torch.utils.checkpoint round the UNet."""
    eps = guided(sampler, cond)
    nodes = TimeGrid.checked(sampler.field.schedule, adp.uniform(sampler.field.schedule, sampler.steps))
    plan = [
        (
            nodes[i].t.float(),
            float(nodes[i].alpha),
            float(nodes[i + 1].alpha),
            float(nodes[i + 1].tau - nodes[i].tau),
        )
        for i in range(len(nodes))
    ]

    def latents(noise: Tensor, prompt: Tensor) -> Tensor:
        x = noise
        for t, alpha, after, h in plan:
            e = checkpoint(eps, x, t, prompt, use_reentrant=False) if recompute else eps(x, t, prompt)
            x = after * (x / alpha + h * e)
        return x

    return latents


class OdeField(nn.Module):
    """dy/drho = eps for torchdiffeq, which differentiates what are parameters: the prompt is one."""

    def __init__(self, sampler: adp.FlowSampler, cond: adp.Cond, prompt: Tensor) -> None:
        super().__init__()
        self.schedule, self.eps = sampler.field.schedule, guided(sampler, cond)
        self.prompt = nn.Parameter(prompt)
        self.network = sampler.field.denoiser.network
        self.nfe = 0

    def forward(self, rho: Tensor, y: Tensor) -> Tensor:
        self.nfe += 1
        now = self.schedule.at_tau(rho.double())
        return self.eps(y * now.alpha, now.t.float(), self.prompt)


def release(sampler: adp.FlowSampler, cond: adp.Cond) -> tuple[Latents, OdeField]:
    """odeint_adjoint, Euler, over the same rho grid: states solved again, products at arrival."""
    nodes = TimeGrid.checked(sampler.field.schedule, adp.uniform(sampler.field.schedule, sampler.steps))
    rhos = torch.stack([nodes[i].tau for i in range(len(nodes) + 1)]).float()
    field = OdeField(sampler, cond, cond["prompt_embeds"].detach().clone())

    def steps(function: Any, y: Tensor, span: Tensor) -> Tensor:
        # torchdiffeq turns a falling time into a rising one by its sign.
        signed = rhos if span[0] * rhos[0] > 0 else -rhos
        return signed if signed[0] == span[0] else signed.flip(0)

    def latents(noise: Tensor, prompt: Tensor) -> Tensor:
        # Only the ends are asked for: at every time that is asked for, torchdiffeq stores the state.
        span, options = rhos[[0, -1]], {"grid_constructor": steps}
        y: Any = odeint_adjoint(
            field, noise / nodes[0].alpha.float(), span, method="euler", options=options
        )
        return y[-1] * nodes[len(nodes)].alpha.float()

    return latents, field


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

    sampler = adp.load("emoji", steps=args.steps, solver=adp.Euler(), guidance_scale=args.guidance_scale)
    sampler.field.denoiser.requires_grad_(args.trained)
    cond = sampler.encode("a red apple on a blue background")
    noise = sampler.noise(1, seed=1)
    cotangent = torch.randn(noise.shape, generator=torch.Generator().manual_seed(0))
    ours: dict[str, adp.FlowSampler] = {
        name: sampler.replace(adjoint=adjoint)
        for name, adjoint in {
            "ours: Checkpointed()": adp.Checkpointed(),
            f"ours: Checkpointed(keep={args.steps})": adp.Checkpointed(keep=args.steps),
            f"ours: Continuous(steps={args.steps // 2})": adp.Continuous(steps=args.steps // 2),
        }.items()
    }
    paper, field = release(sampler, cond)
    contenders: dict[str, Latents] = {
        "plain backpropagation by hand": by_hand(sampler, cond, recompute=False),
        "checkpointed loop by hand": by_hand(sampler, cond, recompute=True),
        **{
            name: lambda noise, prompt, each=each: each.latents(noise, cond.replace(prompt_embeds=prompt))
            for name, each in ours.items()
        },
        "paper's release (torchdiffeq, Euler)": paper,
    }
    weights = [p for p in sampler.field.denoiser.parameters() if p.requires_grad]
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    forward: list[float] = []  # of plain backpropagation, its graph included: the f of f + b
    found: dict[str, list[Tensor]] = {}
    for turn in range(args.repeats + 1):
        for name, latents in contenders.items():
            x = noise.clone().requires_grad_()
            prompt = field.prompt if latents is paper else cond["prompt_embeds"].clone().requires_grad_()
            start = time.perf_counter()
            out = latents(x, prompt)
            if turn and name == "plain backpropagation by hand":
                forward.append(time.perf_counter() - start)
            found[name] = list(torch.autograd.grad((out * cotangent).sum(), [x, prompt, *weights]))
            if turn:
                seconds[name].append(time.perf_counter() - start)
    plain = statistics.median(seconds["plain backpropagation by hand"])
    # What recomputing every call must cost: (2 f + b) / (f + b), f + b the time of plain backpropagation.
    theory = (plain + statistics.median(forward)) / plain
    exact = found["plain backpropagation by hand"]
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
                "seconds": statistics.median(seconds[name]),
                "time_ratio": statistics.median(seconds[name]) / plain,
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
    if args.output:
        machine = {
            "processor": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
        }
        record = {"command": f"python benchmarks/speed.py {' '.join(argv)}", "machine": machine}
        versions = {"torch": torch.__version__, "adjointdpm": adp.__version__}
        args.output.write_text(
            json.dumps(record | versions | {"theory": theory, "rows": rows}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
