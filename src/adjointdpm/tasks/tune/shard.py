"""A frozen network spread over the processes of a run, so that one larger than a device can be tuned."""

import torch
from torch import nn

from ..._types import InputError
from ...files.diffusers_files import unwrapped
from ...optimization.distributed import Processes
from ...pipelines.text_device import check_text_device, placed
from ...samplers.base import Sampler
from ..sampling import network_of, pipeline_of

__all__ = ["shard"]


def shard(sampler: Sampler, *, text_device: str | torch.device | None = None) -> None:
    """Spread the weights of a sampler's denoising network over the processes, by FSDP2 (`fully_shard`).

    Each process holds 1 / n of every weight. A block's weights are gathered for its call and freed after it, so that a
    device needs room for its share, the largest block and the graph of one call. A LoRA that `tune` adds afterwards is
    whole in each process, and its gradient is that of one process to rounding.

    Use it where the network does not fit on a device; where it does, the same batch without it is faster. Load the
    pipeline on the CPU: its shards are moved to this process's GPU, and then the rest of the pipeline is.

    Args:
        sampler: over a pipeline; its network is changed in place and frozen.
        text_device: where the text encoders go, such as "cpu"; with the rest if None.

    Raises:
        InputError: there is one process only, the network is sharded already, or there is no text encoder to place.

    References:
        Zhao et al., 2023, arXiv 2304.11277; torch.distributed.fsdp.fully_shard.

    Examples:
        >>> import adjointdpm as adp
        >>> sampler = adp.load_bundled("emoji")
        >>> adp.tasks.shard(sampler)  # before adp.tasks.tune(sampler, ...), and under torchrun
        Traceback (most recent call last):
            ...
        adjointdpm._types.InputError: a network is sharded over several processes, ...
    """
    processes, network = Processes.here(), unwrapped(network_of(sampler))
    if processes.world == 1:
        raise InputError(
            "a network is sharded over several processes, but this is the only one; start them with torchrun, such as "
            "torchrun --nproc_per_node 2 -m adjointdpm tune ..."
        )
    if is_sharded(network):
        raise InputError(f"the weights of {type(network).__name__} are sharded already")
    pipe, there = pipeline_of(sampler), None if text_device is None else torch.device(text_device)
    check_text_device(pipe, there)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    network.requires_grad_(False)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    mesh = init_device_mesh(device, (processes.world,))
    names: set[str] = set(getattr(network, "_no_split_modules", None) or ())
    blocks = [each for each in network.modules() if type(each).__name__ in names and each is not network]
    for block in reversed(blocks):  # an inner block before the one that it is in
        fully_shard(block, mesh=mesh)
    # The outermost would keep its own weights gathered by default.
    fully_shard(network, mesh=mesh, reshard_after_forward=True)
    here = torch.device("cuda", torch.cuda.current_device()) if device == "cuda" else torch.device("cpu")
    placed(pipe, here, there)


def is_sharded(network: nn.Module) -> bool:
    """Return whether a network's weights are spread over processes."""
    return any(hasattr(weight, "full_tensor") for weight in network.parameters())


def check_shares(network: nn.Module, **counts: int) -> None:
    """Check that every process makes equally many calls of a sharded network, which all of them take part in.

    Args:
        network: of whose calls it is.
        counts: numbers of images that are spread over the processes, by what they are.

    Raises:
        InputError: a number is not a multiple of the number of processes.
    """
    world = Processes.here().world
    if not is_sharded(network):
        return
    for name, count in counts.items():
        if count % world:
            raise InputError(
                f"with sharded weights every process takes part in every call, so {name} must be a multiple of the "
                f"{world} processes, but is {count}"
            )
