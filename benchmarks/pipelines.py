"""What `differentiable` adds to a hand-written checkpointed call of the same pipeline: seconds, in turn.

    python benchmarks/pipelines.py [--steps 10] [--repeats 7]

By hand: the undecorated `__call__`, the UNet's forward wrapped in `torch.utils.checkpoint`, the VAE's own
checkpointing. Same bits, same work; the rest is overhead.
"""

import argparse
import inspect
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import adjointdpm as adp


def by_hand(pipe: Any, **arguments: Any) -> Tensor:
    """A pipeline's image with each UNet call checkpointed, as one would write it."""
    forward = pipe.unet.forward
    pipe.unet.forward = lambda *args, **kwargs: checkpoint(forward, *args, use_reentrant=False, **kwargs)
    pipe.vae.enable_gradient_checkpointing()
    try:
        return inspect.unwrap(type(pipe).__call__)(pipe, **arguments).images
    finally:
        del pipe.unet.forward
        pipe.vae.disable_gradient_checkpointing()


def ours(pipe: Any, **arguments: Any) -> Tensor:
    """The same through the library."""
    with adp.differentiable(pipe) as call:
        return call(**arguments).images


def main() -> None:
    """Time both in turn on the bundled model; the figure is the median of the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    sampler = adp.load_bundled("emoji")
    pipe: Any = sampler.model._call.pipe  # type: ignore[union-attr]
    pipe.set_progress_bar_config(disable=True)
    cond = sampler.encode("a red apple")
    seconds: dict[str, list[float]] = {"by hand": [], "ours": []}
    gradients: dict[str, Tensor] = {}
    ways: list[tuple[str, Callable[..., Tensor]]] = [("by hand", by_hand), ("ours", ours)]
    for turn in range(options.repeats + 1):
        for name, way in ways if turn % 2 else ways[::-1]:
            noise = sampler.noise(1).requires_grad_()
            start = time.perf_counter()
            image = way(
                pipe,
                prompt_embeds=cond["prompt_embeds"].detach(),
                negative_prompt_embeds=cond["negative_prompt_embeds"].detach(),
                guidance_scale=4.0,
                latents=noise,
                num_inference_steps=options.steps,
                output_type="pt",
            )
            (gradients[name],) = torch.autograd.grad(image.square().sum(), noise)
            if turn:
                seconds[name].append(time.perf_counter() - start)
    ratios = [a / b for a, b in zip(seconds["ours"], seconds["by hand"], strict=True)]
    for name, taken in seconds.items():
        print(f"{name:8} {statistics.median(taken):.3f} s")
    print(f"ratio    {statistics.median(ratios):.3f}   same bits: {torch.equal(*gradients.values())}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
