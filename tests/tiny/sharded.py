"""What processes of a group make of a tuning, each leaving its result in a file.

Run as a script, under torchrun: `sharded.py FOLDER STEPS DIES_AT`; process 1 is killed before the step DIES_AT.
"""

import itertools
import os
import signal
import sys
import warnings
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch.distributed.fsdp import FSDPModule

import adjointdpm as adp
from adjointdpm.tasks import Lora, RunOptions, TuneSettings, shard, tune
from tests.tiny.tunes import sampler

LOSSES = {
    "matching": {"loss": "matching", "reward_scale": 20.0, "matching_steps": 2},
    "guards": {"kl_weight": 0.1, "norm_weight": 0.5, "ema_decay": 0.5},
}
PROMPTS, HELD_OUT = [f"a cat {n}" for n in range(6)], ["a pear", "a dog", "a car"]


def tuned(
    folder: Path, steps: int, split: bool, resume: bool = False, fails: int | None = None, loss: str = ""
):
    """Tune a LoRA of a tiny Stable Diffusion in float64; returns its weights and how many others are held."""
    chosen = sampler()
    chosen.pipe.to(torch.float64)
    if split:
        shard(chosen)
    settings = TuneSettings(
        max_train_steps=steps,
        train_batch_size=6,
        num_validation_images=2,
        checkpointing_steps=1,
        **LOSSES.get(loss, {}),
    )

    def report(step: int, _: dict[str, float]) -> None:
        if step == fails:
            raise KeyboardInterrupt

    tune(
        chosen,
        lambda images: (images - 0.2).square().mean((1, 2, 3)),
        PROMPTS,
        HELD_OUT,
        output=folder,
        weights=Lora(rank=2),
        settings=settings,
        run=RunOptions(resume=resume, quiet=True, report=report),
    )
    weights = {name: p.detach().clone() for name, p in chosen.network.named_parameters() if "lora" in name}
    assert weights
    assert not any(hasattr(p, "full_tensor") for p in weights.values())
    for module in chosen.network.modules():
        if isinstance(
            module, FSDPModule
        ):  # a block before the first trained layer stays gathered until its next call
            module.reshard()
    frozen = [p for name, p in chosen.network.named_parameters() if "lora" not in name]
    assert all(hasattr(p, "full_tensor") for p in frozen) == split
    held = sum(p.to_local().numel() if split else p.numel() for p in frozen)
    return weights, held


def work(rank: int, world: int, port: int, folder: str) -> None:
    """Tune with a sharded network, and leave the LoRA and how many of the frozen weights this process held."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    dist.init_process_group("gloo", rank=rank, world_size=world, timeout=timedelta(seconds=120))
    whole = Path(folder, f"run-{world}")
    weights, held = tuned(whole, 2, split=True)
    save_file(weights, Path(folder, f"lora-{world}-{rank}"))
    Path(folder, f"held-{world}-{rank}").write_text(str(held))
    if world == 2:  # a run of one process goes on in two
        weights, _ = tuned(Path(folder, "begun"), 2, split=True, resume=True)
        save_file(weights, Path(folder, f"resumed-{rank}"))
        for loss in LOSSES:
            weights, _ = tuned(Path(folder, loss), 2, split=True, loss=loss)
            save_file(weights, Path(folder, f"{loss}-{rank}"))
        try:
            tune(sampler_of_a_kind(), None, PROMPTS[:5], HELD_OUT, output=Path(folder, "odd"))
        except adp.InputError as error:
            Path(folder, f"odd-{rank}").write_text(str(error))
    dist.destroy_process_group()


def sampler_of_a_kind():
    """A sharded sampler, whose text encoders are elsewhere."""
    chosen = sampler()
    shard(chosen, text_device="meta")
    assert all(weight.is_meta for weight in chosen.pipe.text_encoder.parameters())
    assert not any(weight.is_meta for weight in chosen.network.parameters())
    return chosen


if __name__ == "__main__":
    torch.set_num_threads(1)
    place, number, dies = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    begun = itertools.count()

    def stop() -> bool:
        if next(begun) == dies and dist.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return False

    tune(
        sampler(),
        lambda images: (images - 0.2).square().mean((1, 2, 3)),
        PROMPTS,
        HELD_OUT,
        output=place,
        settings=TuneSettings(max_train_steps=number, train_batch_size=6, checkpointing_steps=1),
        run=RunOptions(quiet=True, stop=stop),
    )
