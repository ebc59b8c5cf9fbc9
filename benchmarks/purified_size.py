"""The memory of one exact gradient through a purification at Stable Diffusion 1.5's own size, random weights.

    python benchmarks/purified_size.py --steps 1 10 100 --output docs/purified_size.json       # 256 x 256, CPU

An image is encoded, noised to t = 0.15, denoised by as many steps of the reverse SDE, decoded and classified by a
network of ResNet-50's size; the gradient is that of one logit with respect to the image. For each number of steps:

    saved   the most bytes that autograd holds for backward at once, by hooks on every saved tensor, the encoder's and
            the classifier's included, weights left out
    alive   the most bytes of tensors alive at once, by following every storage; weights left out
    stats   what `Purified.stats` says of the sampling and the decoder

Random weights make no images, but the work and the memory are those of the real ones. Finished rows are kept in the
file and not measured again. A row that is not done after --minutes ends there, and says after how many of the backward
steps: `stopped_after`.
"""

import argparse
import json
import sys
import time
import weakref
from pathlib import Path
from typing import Any

import torch
from live import LiveBytes
from real_size import pipeline
from record import write_record
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from transformers import ResNetConfig, ResNetForImageClassification

import adjointdpm as adp


class SavedPeak(saved_tensors_hooks):
    """Counts the bytes of the distinct storages that graphs hold; `peak` is the most at once.

    Args:
        weights: tensors that are not counted.
        end: the time at which the next tensor that is saved ends the run.
    """

    def __init__(self, weights: list[Tensor], end: float) -> None:
        self.now = self.peak = 0
        self._end = end
        self._left_out = {each.untyped_storage()._cdata for each in weights}
        self._holders: dict[int, int] = {}
        super().__init__(self._packed, lambda held: held.tensor)

    def _packed(self, tensor: Tensor) -> Any:
        if time.perf_counter() > self._end:
            raise TimeoutError
        held = _Held(tensor if tensor.is_leaf else tensor.detach())
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._left_out:
            if key not in self._holders:
                self.now += size
                self.peak = max(self.peak, self.now)
            self._holders[key] = self._holders.get(key, 0) + 1
            weakref.finalize(held, self._freed, key, size)
        return held

    def _freed(self, key: int, size: int) -> None:
        self._holders[key] -= 1
        if not self._holders[key]:
            del self._holders[key]
            self.now -= size


class _Held:
    """A saved tensor, which lives as long as its node."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


class _Classifier(nn.Module):
    """ResNet-50's published configuration, random weights: images in [0, 1] to logits."""

    def __init__(self) -> None:
        super().__init__()
        self.model = ResNetForImageClassification(ResNetConfig()).eval()

    def forward(self, images: Tensor) -> Tensor:
        return self.model((images - 0.45) / 0.22).logits


def main(argv: list[str]) -> None:
    """Measure, print, write JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 10, 100])
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--minutes", type=float, default=40, help="for a row")
    parser.add_argument("--output", type=Path, default=None)
    args = parser.parse_args(argv)
    dtype = getattr(torch, args.dtype)
    pipe = pipeline(dtype, "cpu")
    pipe.unet.requires_grad_(False)
    draw = torch.Generator().manual_seed(1)
    image = torch.rand(1, 3, args.side, args.side, generator=draw)
    prompt = adp.Cond({"prompt_embeds": torch.randn(1, 77, 768, generator=draw)})
    sampler = adp.FlowSampler.from_pipeline(pipe, solver=adp.EulerMaruyama(), guidance_scale=1.0)
    size: Any = sampler.model
    size.latent_shape, size.image_shape = (4, args.side // 8, args.side // 8), image.shape[1:]
    classifier = _Classifier().requires_grad_(False)
    weights: list[Tensor] = [*pipe.unet.parameters(), *pipe.vae.parameters(), *classifier.parameters()]
    rows: list[dict[str, Any]] = []
    if args.output is not None and args.output.exists():
        rows = json.loads(args.output.read_text())["rows"]
    for steps in args.steps:
        if any(row["steps"] == steps for row in rows):
            continue
        purified = adp.Purified(sampler, classifier, t=0.15, steps=steps, cond=prompt, seed=0).eval()
        leaf = image.clone().requires_grad_()
        start = time.perf_counter()
        saved, forward, stopped = SavedPeak(weights, start + 60 * args.minutes), 0.0, {}
        with saved, LiveBytes() as alive:
            try:
                logit = purified(leaf)[0, 0]
                forward = time.perf_counter() - start
                print(f"N = {steps:3}  forward {forward:.0f} s", flush=True)
                (found,) = torch.autograd.grad(logit, leaf)
                assert bool(found.isfinite().all())
                assert float(found.abs().max()) > 0
            except TimeoutError:
                if not forward:
                    print(f"N = {steps:3}  not even forward in {args.minutes:g} minutes", flush=True)
                    break
                stopped = {"stopped_after": purified.stats.nfe_backward}
        stats = purified.stats
        rows.append(
            {
                "steps": steps,
                "saved": saved.peak,
                "alive": alive.peak,
                "stats": stats.bytes_saved,
                "states": stats.states,
                "calls": stats.nfe_forward,
                "seconds_forward": forward,
                "seconds": time.perf_counter() - start,
                **stopped,
            }
        )
        print(
            f"N = {steps:3}  saved {saved.peak / 2**30:.2f} GiB  alive {alive.peak / 2**30:.2f} GiB  "
            f"{stats.nfe_forward} calls  {rows[-1]['seconds']:.0f} s",
            flush=True,
        )
        write_record(args.output, "purified_size.py", argv, side=args.side, dtype=args.dtype, rows=rows)


if __name__ == "__main__":
    main(sys.argv[1:])
