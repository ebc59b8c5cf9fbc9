"""Models by name, as the command line takes them: bundled, a local folder, or a name on a model hub.

solver    dpm++ (2M), euler (= ddim), midpoint, heun, rk4, ab1 ... ab4, or pipeline: its own scheduler
adjoint   checkpointed[:keep], backprop, truncated:last, continuous[:steps]
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ._types import InputError
from .adjoints import Adjoint, Backprop, Checkpointed, Continuous, Truncated
from .pipeline_sampler import PipelineSampler
from .pretrained import load_pretrained_pipeline
from .sampler import FlowSampler, Sampler
from .solvers import RK4, AdamsBashforth, DPMSolverPP, Euler, Heun, Midpoint, Solver
from .zoo import bundled, folder, load

__all__ = ["adjoint_of", "sampler_of"]

SOLVERS: dict[str, Callable[[], Solver]] = {
    "dpm++": lambda: DPMSolverPP(order=2),
    "euler": Euler,
    "ddim": Euler,
    "midpoint": Midpoint,
    "heun": Heun,
    "rk4": RK4,
    **{f"ab{n}": (lambda n=n: AdamsBashforth(order=n)) for n in (1, 2, 3, 4)},
}
DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def _choice(what: str, given: str, known: Any) -> None:
    if given not in known:
        raise InputError(f"{what} is one of {', '.join(known)}, but is {given!r}")


def adjoint_of(text: str) -> Adjoint:
    """An adjoint from its name and, after a colon, its number.

    Raises:
        InputError: another name, no number where one is needed, or one where none is.
    """
    name, _, number = text.partition(":")
    makes: dict[str, Callable[[int | None], Adjoint]] = {
        "checkpointed": lambda n: Checkpointed(keep=n or 0),
        "backprop": lambda _: Backprop(),
        "truncated": lambda n: Truncated(last=n or 0),
        "continuous": lambda n: Continuous() if n is None else Continuous(steps=n),
    }
    _choice("adjoint", name, makes)
    wrong = number and (not number.isdigit() or name == "backprop")
    if wrong or (name == "truncated" and not number):
        raise InputError(
            f"adjoint {text!r} cannot be read; write checkpointed, checkpointed:5, backprop, truncated:5, "
            "continuous or continuous:25"
        )
    return makes[name](int(number) if number else None)


def sampler_of(
    name: str,
    *,
    steps: int,
    guidance_scale: float,
    solver: str = "dpm++",
    adjoint: str = "checkpointed",
    mixed_precision: str = "no",
    device: str = "cpu",
) -> Sampler:
    """A sampler over a bundled model, a folder or a hub's pipeline, its weights frozen.

    Args:
        name: such as "emoji", a folder of diffusers, or "stable-diffusion-v1-5/stable-diffusion-v1-5".
        steps, guidance_scale: see `FlowSampler`.
        solver, adjoint: see the head of this module.
        mixed_precision: no, fp16 or bf16: the network's dtype; states stay in float32.
        device: where it runs.
    Raises:
        InputError: an unknown name or word, or a folder that holds no pipeline in safetensors.
    """
    _choice("solver", solver, [*SOLVERS, "pipeline"])
    _choice("mixed_precision", mixed_precision, DTYPES)
    made, dtype = adjoint_of(adjoint), DTYPES[mixed_precision]
    shared: dict[str, Any] = {"steps": steps, "guidance_scale": guidance_scale, "adjoint": made}
    if bundled(name) and solver != "pipeline":
        return load(name, dtype=dtype, device=device, solver=SOLVERS[solver](), **shared)
    pipe = load_pretrained_pipeline(folder(name) if bundled(name) else name, dtype).to(device)
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            part.requires_grad_(False).eval()
    if solver == "pipeline":
        return PipelineSampler(pipe, **shared)
    return FlowSampler.from_pipeline(pipe, solver=SOLVERS[solver](), **shared)
