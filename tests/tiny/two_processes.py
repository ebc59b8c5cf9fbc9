"""What two gloo processes on a CPU compute, against what each of them computes alone.

Run by test_distributed.py; every check is a function of the rank that raises or returns. All of them
share one pair of processes, since starting one costs seconds.
"""

import functools
import os
import traceback
import warnings
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

WORLD = 2


def run(rank: int, port: int, folder: str) -> None:
    """Make every check and leave a file for each: empty if it passed."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(WORLD)}
    warnings.simplefilter("ignore")
    limit = timedelta(seconds=300)  # a collective that only one process reaches fails instead of hanging
    dist.init_process_group("gloo", rank=rank, world_size=WORLD, timeout=limit)
    assert dist.get_world_size() == WORLD
    for name, check in checks().items():
        try:
            check(rank)
            message = ""
        except Exception:
            message = traceback.format_exc()
        Path(folder, f"{name}.{rank}").write_text(message)
        dist.barrier()
    dist.destroy_process_group()


def setting(trained: str, adjoint):
    """A tiny Stable Diffusion as a sampler, the same in every process."""
    import peft

    from tests.tiny.families import FAMILIES

    family = FAMILIES[0]
    pipe = family.make()
    torch.manual_seed(1)
    sampler = family.sampler(pipe, steps=3, adjoint=adjoint)
    sampler.requires_grad_(False)
    if trained == "weights":
        pipe.unet.requires_grad_()
    if trained == "lora":
        pipe.unet.add_adapter(
            peft.LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False)
        )
    return family, sampler


def inputs(family, rank: int):
    """The part of the batch that falls to one rank."""
    noise, cond = family.noise(WORLD), family.cond(WORLD)
    mine = cond.map(lambda t: t[rank : rank + 1].clone() if t.ndim else t.clone())
    return noise[rank : rank + 1].clone().requires_grad_(), mine.requires_grad_()


def gradients(sampler, family, rank: int):
    """Of one rank's loss: of the noise and the conditioning, and what lands in the weights' .grad."""
    noise, cond = inputs(family, rank)
    sampler.zero_grad(set_to_none=True)
    sampler(noise, cond).square().mean().backward()
    given = [noise.grad, *(tensor.grad for tensor in cond.values())]
    return given, {
        name.removeprefix("module."): p.grad for name, p in sampler.named_parameters() if p.requires_grad
    }


@functools.cache
def alone(trained: str, adjoint):
    """What one process finds for each rank's part, and the mean over them of the weights' gradients."""
    family, sampler = setting(trained, adjoint)
    parts = [gradients(sampler, family, rank) for rank in range(WORLD)]
    mean = {name: sum(grads[name] for _, grads in parts) / WORLD for name in parts[0][1]}
    return [given for given, _ in parts], mean


def compare(found, truth, rank: int, within: float = 2e-4) -> None:
    """Equal bits, or a relative error of the norm below `within`.

    Kernels round by alignment in memory; a sum over processes that is left out is wrong by about 1.
    """
    given, weights = found
    assert set(weights) == set(truth[1])
    whole = [g.full_tensor() if hasattr(g, "full_tensor") else g for g in weights.values()]
    pairs = [*zip(given, truth[0][rank], strict=True), *zip(whole, truth[1].values(), strict=True)]
    for a, b in pairs:
        assert torch.equal(a, b) or float((a - b).norm()) < within * float(b.norm()), (
            a - b
        ).norm() / b.norm()
    assert max(float(b.norm()) for _, b in pairs) > 0


def data_parallel(rank: int, trained: str, adjoint) -> None:
    family, sampler = setting(trained, adjoint)
    wrapped = DistributedDataParallel(sampler)
    compare(gradients(wrapped, family, rank), alone(trained, adjoint), rank)


def accelerated(rank: int, trained: str, adjoint) -> None:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == WORLD
    family, sampler = setting(trained, adjoint)
    wrapped = accelerator.prepare(sampler)
    assert isinstance(wrapped, DistributedDataParallel)
    compare(gradients(wrapped, family, rank), alone(trained, adjoint), rank)


def sharded(rank: int, trained: str, adjoint, reshard: bool = True) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    family, sampler = setting(trained, adjoint)
    mesh = init_device_mesh("cpu", (WORLD,))
    unet = sampler.model.denoiser.network
    for block in (*unet.down_blocks, unet.mid_block, *unet.up_blocks):
        fully_shard(block, mesh=mesh, reshard_after_forward=reshard)
    fully_shard(sampler, mesh=mesh, reshard_after_forward=reshard)
    assert all(hasattr(p, "full_tensor") for p in unet.parameters())
    # Gathered weights are other memory than a module's own, and some kernels round by alignment.
    compare(gradients(sampler, family, rank), alone(trained, adjoint), rank)


def refused(rank: int, trained: str, adjoint) -> None:
    import adjointdpm as adp

    with pytest.raises(adp.InputError, match=r"sharded.*Checkpointed"):
        sharded(rank, trained, adjoint)


def checks():
    """Every check by name."""
    import adjointdpm as adp

    exact, paper = adp.Checkpointed(), adp.CoarseAdjoint()
    return {
        "ddp-weights-checkpointed": lambda rank: data_parallel(rank, "weights", exact),
        "ddp-weights-continuous": lambda rank: data_parallel(rank, "weights", paper),
        "ddp-lora-checkpointed": lambda rank: data_parallel(rank, "lora", exact),
        "ddp-lora-continuous": lambda rank: data_parallel(rank, "lora", paper),
        "accelerate-weights-continuous": lambda rank: accelerated(rank, "weights", paper),
        "accelerate-lora-checkpointed": lambda rank: accelerated(rank, "lora", exact),
        "fsdp2-frozen-checkpointed": lambda rank: sharded(rank, "frozen", exact),
        "fsdp2-weights-checkpointed": lambda rank: sharded(rank, "weights", exact),
        "fsdp2-lora-checkpointed": lambda rank: sharded(rank, "lora", exact),
        "fsdp2-frozen-continuous": lambda rank: sharded(rank, "frozen", paper),
        "fsdp2-weights-continuous-is-refused": lambda rank: refused(rank, "weights", paper),
    }
