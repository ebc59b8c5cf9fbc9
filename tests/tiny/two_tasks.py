"""What two gloo processes make of the loop's tasks, each leaving its result in a file."""

import os
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file

import adjointdpm as adp
from adjointdpm.tasks import AuditSettings
from adjointdpm.tasks.harden.dataset import clean_images
from tests.tiny.tasks import Points, Shift, mixture_sampler, run

WORLD = 2


class Failing(Points):
    def losses(self, step, items):
        if step == 2 and dist.is_initialized() and dist.get_rank() == 1:
            raise ZeroDivisionError("in one of them")
        return super().losses(step, items)


def work(rank: int, port: int, folder: str) -> None:
    """Run every task, and leave what it found."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(WORLD)}
    dist.init_process_group("gloo", rank=rank, world_size=WORLD, timeout=timedelta(seconds=60))
    assert dist.get_world_size() == WORLD
    for kind in (Points, Shift):
        found = run(Path(folder, kind.__name__), kind)
        about = {"losses": torch.tensor(found.losses), "step": found.best_step}
        save_file({**found.best, **about}, Path(folder, f"{kind.__name__}.{rank}"))
    images = clean_images(mixture_sampler(3), {"x": "a", "y": "b"}, 3, 5, AuditSettings(train_batch_size=2))
    save_file({"images": images.images}, Path(folder, f"clean.{rank}"))
    try:
        run(None, Failing)
    except adp.AdjointDPMError as error:
        Path(folder, f"failed.{rank}").write_text(str(error))
    dist.destroy_process_group()
