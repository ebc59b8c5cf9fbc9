"""The one training loop: schedule, progress bar, atomic checkpoints, exact resumption.

A step may use only `step` and the global random state, which the loop seeds by (seed, step, process);
with the optimizer's moments in the checkpoint, a resumed run therefore repeats an uninterrupted one bit
for bit on the same machine and number of threads. A checkpoint is one safetensors file (tensors
under `module.<name>.<key>` and `optimizer.<index>.<key>`; the step as metadata), written aside and
renamed into place.

Under `torchrun` the processes share a batch and average their gradients. Two processes of one thread are
1.3 times as fast as one of two threads: the many small operations between the large ones run side by side.
"""

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer
from tqdm import tqdm

__all__ = ["Ema", "Run", "load", "load_modules", "process", "save"]


def process() -> tuple[int, int]:
    """This process's number and how many there are; joins the others that torchrun started."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count > 1 and not dist.is_initialized():
        dist.init_process_group("gloo", timeout=timedelta(hours=1))
    return (dist.get_rank(), count) if count > 1 else (0, 1)


@dataclass(frozen=True)
class Run:
    """A training run of `steps` steps; learning rate: linear warm-up, then cosine to 2 % of it."""

    folder: Path
    steps: int
    lr: float
    seed: int
    warmup: int = 100
    save_every: int = 100
    sample_every: int = 100

    def rows(self, step: int, batch: int) -> range:
        """Which pictures of the endless set are this process's share of a batch."""
        number, count = process()
        share = batch // count
        return range(step * batch + number * share, step * batch + (number + 1) * share)

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.safetensors"

    def lr_at(self, step: int) -> float:
        rise = min(1.0, (step + 1) / self.warmup)
        fall = 0.51 + 0.49 * math.cos(math.pi * min(1.0, step / self.steps))
        return self.lr * rise * fall

    def train(
        self,
        loss_at: Callable[[int], Tensor],
        modules: Mapping[str, nn.Module],
        optimizer: Optimizer,
        after_step: Callable[[int], None] = lambda step: None,
        sample: Callable[[int], None] = lambda step: None,
    ) -> None:
        """Minimise `loss_at(step)`, from the run's checkpoint where there is one."""
        self.folder.mkdir(parents=True, exist_ok=True)
        number, count = process()
        start = load(self.checkpoint, modules, optimizer) if self.checkpoint.exists() else 0
        weights = [p for group in optimizer.param_groups for p in group["params"]]
        mean = math.nan
        bar = tqdm(
            range(start, self.steps), initial=start, total=self.steps, mininterval=5, disable=number > 0
        )
        for step in bar:
            torch.manual_seed((self.seed * 1_000_003 + step) * count + number)
            for group in optimizer.param_groups:
                group["lr"] = self.lr_at(step)
            optimizer.zero_grad(set_to_none=True)
            loss = loss_at(step)
            loss.backward()
            if count > 1:
                _average(weights)
            nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            after_step(step)
            value = loss.item()
            mean = value if math.isnan(mean) else 0.98 * mean + 0.02 * value
            bar.set_postfix(loss=f"{mean:.4f}", refresh=False)
            done = step + 1
            if number > 0:
                continue
            if done % self.save_every == 0 or done == self.steps:
                save(self.checkpoint, done, modules, optimizer)
            if done % self.sample_every == 0 or done == self.steps:
                sample(done)


def _average(weights: list[Tensor]) -> None:
    """Replace each gradient by its mean over the processes, in one message."""
    gradients = [w.grad for w in weights if w.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    parts = flat.split([gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


class Ema(nn.Module):
    """Exponential moving average of a module's weights, in `shadow`, with a warm-up of the rate."""

    def __init__(self, shadow: nn.Module, decay: float = 0.995) -> None:
        super().__init__()
        self.shadow = shadow.requires_grad_(False).eval()
        self.decay = decay

    @torch.no_grad()
    def update(self, source: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.shadow.parameters()), list(source.parameters()), 1 - decay)


def save(path: Path, step: int, modules: Mapping[str, nn.Module], optimizer: Optimizer) -> None:
    """Write modules and optimizer state as one file, atomically."""
    tensors = {
        f"module.{name}.{key}": value.detach().contiguous().clone()
        for name, module in modules.items()
        for key, value in module.state_dict().items()
    }
    for index, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            tensors[f"optimizer.{index}.{key}"] = value.contiguous()
    aside = path.with_suffix(".partial")
    save_file(tensors, aside, metadata={"step": str(step)})
    os.replace(aside, path)


def load_modules(path: Path, modules: Mapping[str, nn.Module]) -> int:
    """Load the modules named from a checkpoint; returns its step."""
    with safe_open(path, "pt") as file:
        stored = file.keys()
        for name, module in modules.items():
            prefix = f"module.{name}."
            keys = [key for key in stored if key.startswith(prefix)]
            module.load_state_dict({key[len(prefix) :]: file.get_tensor(key) for key in keys})
        return int(file.metadata()["step"])


def load(path: Path, modules: Mapping[str, nn.Module], optimizer: Optimizer) -> int:
    """Load modules and optimizer state in place; returns the number of steps done."""
    step = load_modules(path, modules)
    weights = [p.detach() for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    with safe_open(path, "pt") as file:
        stored = file.keys()
        for key in stored:
            if key.startswith("optimizer."):
                _, index, name = key.split(".")
                # In the weight's own layout: the fused optimizer reads memory, not indices.
                value, weight = file.get_tensor(key), weights[int(index)]
                value = torch.empty_like(weight).copy_(value) if value.shape == weight.shape else value
                state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    return step
