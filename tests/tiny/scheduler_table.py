"""Every scheduler of diffusers in a stock Stable Diffusion pipeline, measured: the rows of docs/schedulers.md.

python -m tests.tiny.scheduler_table > docs/schedulers.md
"""

import functools
import inspect
import warnings
from dataclasses import dataclass
from typing import Any

import diffusers
import torch

import adjointdpm as adp
from adjointdpm.pipelines.checks import tensors_of
from tests.tiny.pipelines import draw, embeds, first, sd, text_unet, vp, weights

__all__ = ["NAMES", "Row", "row", "table"]

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    f"{kind} ({', '.join(f'{k}={v}' for k, v in config.items())})": (kind, config)
    for kind, config in [
        ("DDIMScheduler", {"prediction_type": "v_prediction"}),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}),
        (
            "DPMSolverMultistepScheduler",
            {"algorithm_type": "sde-dpmsolver", "final_sigmas_type": "sigma_min"},
        ),
        ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True, "solver_order": 3}),
        ("DPMSolverSinglestepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
        ("UniPCMultistepScheduler", {"solver_order": 3}),
        ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    ]
}
# As Stable Diffusion has it; its Runge-Kutta start needs more steps than are taken here.
VARIANTS["PNDMScheduler"] = ("PNDMScheduler", {"skip_prk_steps": True})
CLASSES = [
    name
    for name in sorted(dir(diffusers))
    if name.endswith("Scheduler")
    and inspect.isclass(getattr(diffusers, name))
    and issubclass(getattr(diffusers, name), diffusers.SchedulerMixin)
    and name != "SchedulerMixin"
]
NAMES = list(dict.fromkeys([*CLASSES, *VARIANTS]))


@dataclass(frozen=True)
class Row:
    """What was seen of one scheduler; `refusal` instead of the rest where it cannot work.

    image   the same bits as the untouched pipeline's
    gradient  of latents, both embeddings, guidance scale and weights: the same bits as plain autograd's
    growth    bytes saved for backward at 16 steps over those at 4
    calls     of the denoiser in 16 steps, forward only
    """

    name: str
    image: bool = False
    gradient: bool = False
    growth: float = 0.0
    calls: int = 0
    refusal: str = ""


@functools.cache
def row(name: str) -> Row:
    """Measure one scheduler."""
    kind, config = VARIANTS.get(name, (name, {}))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scheduler = getattr(diffusers, kind).from_config({**vp().config, **config})
            pipe = sd(diffusers.StableDiffusionPipeline, scheduler, text_unet(block_out_channels=(8, 16)))
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        return Row(name, refusal=f"cannot be made from Stable Diffusion's configuration ({_line(error)})")
    pipe.set_progress_bar_config(disable=True)
    arguments = {**embeds(), "latents": draw(1, 4, 8, 8), "output_type": "pt", "num_inference_steps": 3}
    plain = inspect.unwrap(type(pipe).__call__)
    try:
        with adp.differentiable(pipe) as call:
            out = first(call(**_again(arguments)))
    except adp.InputError as error:
        return Row(name, refusal=_line(error))
    leaves = [*tensors_of(arguments).values(), *weights(pipe)]
    truth = torch.autograd.grad(first(plain(pipe, **_again(arguments))).square().sum(), leaves)
    found = torch.autograd.grad(out.square().sum(), leaves)
    with torch.no_grad():
        untouched = first(pipe(**_again(arguments)))
    bytes_saved = []
    for steps in (4, 16):
        with adp.differentiable(pipe) as call:
            call(**_again({**arguments, "num_inference_steps": steps}))
        bytes_saved.append(call.stats.bytes_saved)
    same = all(torch.equal(g, exact) for g, exact in zip(found, truth, strict=True))
    growth = round(bytes_saved[1] / bytes_saved[0], 2)
    return Row(name, torch.equal(out, untouched), same, growth, call.stats.nfe_forward)


def _again(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments with the same randomness, the global one included."""
    torch.manual_seed(1)
    return {**arguments, "generator": torch.Generator().manual_seed(3)}


def _line(error: Exception) -> str:
    return " ".join(str(error).replace("|", "/").split())


def table() -> str:
    """The page docs/schedulers.md."""
    rows = [row(name) for name in NAMES]
    good = [each for each in rows if not each.refusal]
    lines = [
        "# Schedulers",
        "",
        "`adp.differentiable(pipe)` and `adp.PipelineSampler(pipe)` keep the pipeline's own scheduler. Each one of",
        f"diffusers {diffusers.__version__} in a stock `StableDiffusionPipeline`. A test",
        "fails when this page is out of date; `python -m tests.tiny.scheduler_table` writes it.",
        "",
        "- image: the same bits as the untouched pipeline's",
        "- gradient: of latents, both embeddings, the guidance scale, every weight: the same bits as plain autograd's",
        "- memory: bytes saved for the backward pass at 16 steps over those at 4, `Checkpointed()`",
        "- calls: of the UNet in 16 steps",
        "",
        "| scheduler | image | gradient | memory | calls |",
        "|---|---|---|---|---|",
    ]
    for each in good:
        marks = ["same bits" if mark else "DIFFERENT" for mark in (each.image, each.gradient)]
        lines.append(f"| {each.name} | {marks[0]} | {marks[1]} | {each.growth:.2f} | {each.calls} |")
    lines += [
        "",
        "These do not work in this pipeline, and are refused:",
        "",
        "| scheduler | why |",
        "|---|---|",
    ]
    lines += [f"| {each.name} | {each.refusal} |" for each in rows if each.refusal]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    diffusers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    print(table(), end="")
