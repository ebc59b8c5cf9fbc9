"""What two gloo processes on a CPU compute, against what each of them computes alone.

Run by test_distributed.py; every check is a function of the rank that raises or returns. All of them
share one pair of processes, since starting one costs seconds.
"""

import os
import traceback
import warnings
from datetime import timedelta
from pathlib import Path

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
    limit = timedelta(seconds=60)  # a collective that only one process reaches fails instead of hanging
    dist.init_process_group("gloo", rank=rank, world_size=WORLD, timeout=limit)
    assert dist.get_world_size() == WORLD
    for name, check in checks().items():
        try:
            check(rank)
            said = ""
        except Exception:
            said = traceback.format_exc()
        Path(folder, f"{name}.{rank}").write_text(said)
        dist.barrier()
    dist.destroy_process_group()


def setting(trained: str, adjoint):
    """A tiny Stable Diffusion as a sampler, the same in every process."""
    import peft

    from tests.tiny_families import FAMILIES

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
    return given, {name.removeprefix("module."): p.grad for name, p in sampler.named_parameters() if p.requires_grad}


def alone(trained: str, adjoint):
    """What one process finds for each rank's part, and the mean over them of the weights' gradients."""
    family, sampler = setting(trained, adjoint)
    parts = [gradients(sampler, family, rank) for rank in range(WORLD)]
    mean = {name: sum(grads[name] for _, grads in parts) / WORLD for name in parts[0][1]}
    return [given for given, _ in parts], mean


def compare(found, truth, rank: int, rtol: float = 0.0) -> None:
    given, weights = found
    for a, b in zip(given, truth[0][rank], strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=rtol)
    assert set(weights) == set(truth[1])
    for name, expected in truth[1].items():
        grad = weights[name]
        whole = grad.full_tensor() if hasattr(grad, "full_tensor") else grad
        torch.testing.assert_close(whole, expected, rtol=rtol, atol=rtol, msg=lambda m, n=name: f"{n}: {m}")
    if truth[1]:
        assert max(float(g.abs().max()) for g in truth[1].values()) > 0


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
    unet = sampler.field.denoiser.network
    for block in (*unet.down_blocks, unet.mid_block, *unet.up_blocks):
        fully_shard(block, mesh=mesh, reshard_after_forward=reshard)
    fully_shard(sampler, mesh=mesh, reshard_after_forward=reshard)
    assert all(hasattr(p, "full_tensor") for p in unet.parameters())
    compare(gradients(sampler, family, rank), alone(trained, adjoint), rank)


def refused(rank: int, trained: str, adjoint) -> None:
    import adjointdpm as adp

    try:
        sharded(rank, trained, adjoint)
    except adp.InputError as error:
        assert "sharded" in str(error) and "Checkpointed" in str(error)  # noqa: PT018
        return
    raise AssertionError("sharded weights were not refused")


def checks():
    """Every check by name."""
    import adjointdpm as adp

    table = {}
    for name, adjoint in (
        ("backprop", adp.Backprop()),
        ("checkpointed", adp.Checkpointed()),
        ("continuous", adp.Continuous()),
    ):
        for trained in ("weights", "lora"):
            table[f"ddp-{trained}-{name}"] = lambda r, t=trained, a=adjoint: data_parallel(r, t, a)
            table[f"accelerate-{trained}-{name}"] = lambda r, t=trained, a=adjoint: accelerated(r, t, a)
        for trained in ("frozen", "weights", "lora"):
            check = refused if name == "continuous" and trained != "frozen" else sharded
            table[f"fsdp2-{trained}-{name}"] = lambda r, c=check, t=trained, a=adjoint: c(r, t, a)
    return table
