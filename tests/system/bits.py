"""The bits of images and gradients over the whole matrix, to be saved before a change and compared after it.

    python -m tests.system.bits --save before.json       # in the checkout before the change
    python -m tests.system.bits --compare before.json    # in the one after it; exits 1 and names what differs

Every solver x prediction x adjoint on a small UNet in float64, ten families of stock pipelines as `FlowSampler`, and
every tiny stock pipeline through `differentiable`.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

import adjointdpm as adp
from adjointdpm.flow.denoisers import Prediction
from adjointdpm.pipelines.checks import tensors_of
from tests.conftest import unet_sampler
from tests.tiny.families import FAMILIES
from tests.tiny.gradients import inputs, loss_of
from tests.tiny.pipelines import CASES, first, weights
from tests.tiny.solvers import SOLVERS

ADJOINTS = {
    "backprop": adp.Backprop(),
    "checkpointed": adp.Checkpointed(),
    "keep": adp.Checkpointed(keep=3),
    "budget": adp.Checkpointed(budget=400_000),
    "coarse": adp.CoarseAdjoint(steps=3),
    "continuous": adp.Continuous(solver=adp.Euler()),
    "resolved": adp.Continuous(solver=adp.Euler(), trajectory="resolved"),
    "truncated": adp.Truncated(last=2),
}


def bits(tensors: list[Tensor | None]) -> str:
    """A hash of some tensors."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(b"none" if tensor is None else tensor.detach().contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


def solvers() -> Iterator[tuple[str, str]]:
    """Solvers of our own, in float64."""
    for solver in [*SOLVERS, adp.Coupled(adp.Euler())]:
        for prediction in Prediction:
            for name, adjoint in {**ADJOINTS, "reversible": adp.Reversible()}.items():
                if (name == "reversible") != isinstance(solver, adp.Coupled):
                    continue
                sampler = unet_sampler(prediction, solver=solver, steps=6, adjoint=adjoint)
                noise, cond = inputs(sampler)
                noise.requires_grad_(name != "truncated")
                leaves = [t for t in (noise, *cond.values(), *sampler.parameters()) if t.requires_grad]
                loss = loss_of(sampler, noise, cond)
                yield (
                    f"{solver!r} {prediction.name} {name}",
                    bits([loss, *torch.autograd.grad(loss, leaves)]),
                )


def families() -> Iterator[tuple[str, str]]:
    """Stock pipelines as vector fields."""
    for family in FAMILIES:
        noise, cond = family.noise(2).requires_grad_(), family.cond(2).requires_grad_()
        sampler = family.sampler(steps=3)
        leaves = [noise, *(cond[name] for name in cond.differentiable)]
        image = sampler(noise, cond)
        yield f"family {family}", bits([image, *torch.autograd.grad(image.square().sum(), leaves)])


def pipelines() -> Iterator[tuple[str, str]]:
    """Stock pipelines' own calls."""
    for name, make in CASES.items():
        pipe, arguments = make()
        arguments["num_inference_steps"] = 3
        if "generator" in arguments:
            arguments["generator"].manual_seed(3)
        leaves = [*tensors_of(arguments).values(), *weights(pipe)]
        with adp.differentiable(pipe) as call:
            image = first(call(**arguments))
        yield (
            f"pipeline {name}",
            bits([image, *torch.autograd.grad(image.square().sum(), leaves, allow_unused=True)]),
        )


def main() -> int:
    """Make them all, and save or compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--save", type=Path)
    parser.add_argument("--compare", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = {name: each for kind in (solvers, families, pipelines) for name, each in tqdm(kind())}
    if options.save:
        options.save.write_text(json.dumps(found, indent=0))
    if options.compare:
        before = json.loads(options.compare.read_text())
        differ = sorted(
            name for name in before.keys() | found.keys() if before.get(name) != found.get(name)
        )
        print(f"{len(before)} before, {len(found)} now, {len(differ)} differ")
        print("\n".join(differ))
        return bool(differ)
    return 0


if __name__ == "__main__":
    sys.exit(main())
