"""Does a cheaper gradient do? The audit and guidance by noise, with three gradients at equal denoiser calls.

    python benchmarks/matters.py [--steps 10] [--seeds 0 1 2] [--record docs/matters.json]

    exact     Checkpointed()                                        2 N forward, N backward calls a step
    Euler     the paper's release: Euler, states solved again       2 N forward, N backward
    half      CoarseAdjoint(steps=N/2)                                 1.5 N forward, N/2 backward

so that the last one takes one and a half times as many steps of the optimization. Success of an audit is read from
the saved 8-bit images (Wilson's 95 % interval over all starts of all seeds); a metric's interval is over images, by
the normal approximation.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from protocol import about, spread
from record import write_record
from torch import Tensor

import adjointdpm as adp
from adjointdpm.metrics import EFFECTS, BackgroundColour, EffectDistance, HiddenStates, beside
from adjointdpm.optimization.loop import optimize
from adjointdpm.optimization.seeds import key
from adjointdpm.optimization.task import LoopSettings
from adjointdpm.tasks import AuditSettings, Ball, RunOptions
from adjointdpm.tasks.evaluation import Mean, Rate
from adjointdpm.tasks.guide.guide import Guide
from adjointdpm.tasks.noise_optimization import Stages
from adjointdpm.tasks.sampling import noise_of, sampled


def gradients(sampler: adp.FlowSampler) -> dict[str, adp.FlowSampler]:
    """The three, over one sampler."""
    N = len(sampler.times()) - 1
    return {
        "exact": sampler.replace(adjoint=adp.Checkpointed()),
        "Euler": sampler.replace(adjoint=adp.Continuous(solver=adp.Euler(), trajectory="resolved")),
        "half": sampler.replace(adjoint=adp.CoarseAdjoint(steps=N // 2)),
    }


def calls(sampler: adp.FlowSampler) -> int:
    """Denoiser calls of one gradient of the noise, forward, again, and backward."""
    noise, cond = sampler.noise(1).requires_grad_(), sampler.encode("a cat")
    torch.autograd.grad(sampler(noise, cond).sum(), noise)
    return sampler.stats.nfe_forward + sampler.stats.nfe_backward


def audited(sampler: adp.FlowSampler, steps: int, seed: int, options: argparse.Namespace) -> Any:
    """One audit without controls."""
    draw = torch.Generator().manual_seed(key(seed, "matters"))
    names = [about["concepts"][i] for i in torch.randperm(len(about["concepts"]), generator=draw)]
    keep = adp.load_classifier("emoji/hgnet")
    names = names[: options.starts]
    with tempfile.TemporaryDirectory() as folder:
        return adp.tasks.audit(
            sampler,
            adp.load_classifier("emoji/resnet"),
            [about["phrases"][name] for name in names],
            names,
            output=folder,
            settings=AuditSettings(
                ball=Ball(0.1),
                max_train_steps=steps,
                momentum=0.5,
                controls=False,
                train_batch_size=options.starts,
                seed=seed,
            ),
            judge=adp.load_classifier("emoji/judge"),
            features=HiddenStates(keep.model, keep.normalized, None),
            run=RunOptions(quiet=True),
        )


def guided(sampler: adp.FlowSampler, metric: Any, steps: int, seed: int, starts: int) -> Tensor:
    """The metric of each image after so many steps on its noise."""
    noise = noise_of(sampler, [key(seed, "matters", i) for i in range(starts)])
    prompts = [f"{phrase} on a blue background" for _, phrase in spread(starts)]
    cond = sampler.encode(prompts)
    originals = sampled(sampler, noise, cond, starts)
    stages = Stages((sampler,), (sampler.length,), steps)
    task = Guide(stages, metric, prompts, noise, cond, originals)
    with tempfile.TemporaryDirectory() as folder:
        loop = LoopSettings(
            steps=steps, decay="cosine", seed=seed, folder=Path(folder), run=RunOptions(quiet=True)
        )
        best = optimize(task, lambda leaves: torch.optim.Adam(leaves, 0.1), loop).best["noise"]
    with torch.no_grad():
        return beside(metric, originals)(sampled(sampler, best, cond, starts))


def main(argv: list[str]) -> None:
    """Measure, print, write JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--steps", type=int, default=10, help="of the optimization, with the exact gradient"
    )
    parser.add_argument("--starts", type=int, default=16, help="images a seed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--sampling", type=int, default=14)
    parser.add_argument("--record", type=Path, default=None)
    options = parser.parse_args(argv)
    base = adp.load_bundled("emoji", steps=options.sampling, guidance_scale=4.0)
    ways = gradients(base)
    spent = {name: calls(each) for name, each in ways.items()}
    steps = {name: round(options.steps * spent["exact"] / spent[name]) for name in ways}
    metrics = {
        "background colour": BackgroundColour((0.98, 0.86, 0.29)),
        "sepia": EffectDistance(EFFECTS["sepia"]),
    }
    rows = []
    for name, sampler in ways.items():
        found = [audited(sampler, steps[name], seed, options) for seed in options.seeds]
        fooled = torch.cat([each.after.fooled for each in found])
        shown = torch.cat([each.after.fooled & each.after.shows for each in found])
        row: dict[str, Any] = {"gradient": name, "steps": steps[name], "calls_a_step": spent[name]}
        row |= {
            "misclassified": Rate.of_mask(fooled).as_dict(),
            "label preserved": Rate.of_mask(shown).as_dict(),
        }
        print(
            f"{name:6} misclassified {Rate.of_mask(fooled)}; label preserved {Rate.of_mask(shown)}",
            flush=True,
        )
        for metric, each in metrics.items():
            values = torch.cat(
                [guided(sampler, each, steps[name], seed, options.starts) for seed in options.seeds]
            )
            row[metric] = Mean.of(values).as_dict()
            print(f"{name:6} {metric} {Mean.of(values)}", flush=True)
        rows.append(row)
        write_record(options.record, "matters.py", argv, rows=rows)


if __name__ == "__main__":
    main(sys.argv[1:])
