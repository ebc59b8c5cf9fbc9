"""A second device on a machine that has a CPU alone: torch's lazy device, whose results the CPU computes.

Its tensors are as those of a GPU: an operator of them and of the CPU's is an error, and `.to` copies. Two things are
not: moving a module separates weights that it shares, and there is no storage whose address could be read.
"""

from functools import cache

import torch
import torch._lazy.ts_backend

from adjointdpm.adjoints import saved_bytes
from adjointdpm.pipelines.text_device import placed

__all__ = ["opened", "text_there"]


@cache
def open_once() -> torch.device:
    torch._lazy.ts_backend.init()
    return torch.device("lazy", 0)


def opened(monkeypatch) -> torch.device:
    """The device; its tensors are told apart by themselves where the accounting of memory reads addresses."""
    there, own = open_once(), saved_bytes.address
    monkeypatch.setattr(
        saved_bytes, "address", lambda each: (there, id(each)) if each.device == there else own(each)
    )
    return there


def text_there(pipe, there):
    """Put a pipeline's text encoders on the second device."""
    placed(pipe, torch.device("cpu"), there)
    for name, part in vars(pipe).items():
        if "text_encoder" in name and part is not None:
            part.tie_weights()
    return pipe
