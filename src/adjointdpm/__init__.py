"""Gradients through diffusion samplers: exact by default, at the memory of one denoiser call.

    dL/dv,     L = metric(sampler(noise, cond))          v the noise, a part of cond, the time grid or the weights

`differentiable(pipe)` is a stock pipeline's own call with gradients; `PipelineSampler(pipe)` and `FlowSampler` are
samplers for `gradients`, `compare` and the tasks. `load_bundled` loads a small model to try them on.

Examples:
    >>> import adjointdpm as adp
    >>> sampler = adp.load_bundled("emoji", steps=2)
    >>> noise, cond = sampler.noise(1, seed=0), sampler.encode("a red apple").requires_grad_()
    >>> images = sampler(noise.requires_grad_(), cond)
    >>> adp.metrics.Chroma()(images).sum().backward()
    >>> noise.grad.shape == noise.shape, cond["prompt_embeds"].grad is not None
    (True, True)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import attacks, metrics, optimization, tasks, zoo
    from ._types import (
        AdjointDPMError,
        Cond,
        DriftError,
        InputError,
        NonFiniteError,
        RecomputationError,
        Stats,
    )
    from .adjoints import (
        Adjoint,
        Backprop,
        Checkpointed,
        CoarseAdjoint,
        Continuous,
        DirectAlign,
        DRTune,
        FlowBP,
        LeapAlign,
        Reversible,
        Truncated,
    )
    from .adjoints.likelihood import LogLikelihood
    from .analysis.comparison import compare
    from .analysis.comparison_report import Comparison
    from .analysis.gradients import Gradients, gradients
    from .files.diffusers_files import load_noise, save_lora, save_noise, save_textual_inversion
    from .files.image_grid import image_grid
    from .flow import grids
    from .flow.denoisers import Denoiser, NetworkDenoiser, Prediction
    from .flow.model import DiffusionModel
    from .flow.schedules import EDMSchedule, RectifiedFlow, Schedule, VPCosine, VPDiscrete, VPLinear
    from .metrics.base import Metric
    from .pipelines.checks import UnusedRowsWarning, WeightsWarning
    from .pipelines.differentiable import differentiable
    from .pipelines.pipeline_model import PipelineModel
    from .pipelines.token_embeddings import TokenRows
    from .samplers.base import Sampler
    from .samplers.flow_sampler import FlowSampler
    from .samplers.pipeline_sampler import PipelineSampler
    from .samplers.purified import Purified
    from .solvers import (
        RK4,
        AdamsBashforth,
        Ancestral,
        Coupled,
        DPMSolverPP,
        Euler,
        EulerMaruyama,
        Heun,
        Midpoint,
        SDEDPMSolverPP,
        Solver,
    )
    from .solvers.inversion import InversionError
    from .solvers.step_noise import StepNoise
    from .zoo import load_bundled, load_classifier

__all__ = [
    "RK4",
    "AdamsBashforth",
    "Adjoint",
    "AdjointDPMError",
    "Ancestral",
    "Backprop",
    "Checkpointed",
    "CoarseAdjoint",
    "Comparison",
    "Cond",
    "Continuous",
    "Coupled",
    "DPMSolverPP",
    "DRTune",
    "Denoiser",
    "DiffusionModel",
    "DirectAlign",
    "DriftError",
    "EDMSchedule",
    "Euler",
    "EulerMaruyama",
    "FlowBP",
    "FlowSampler",
    "Gradients",
    "Heun",
    "InputError",
    "InversionError",
    "LeapAlign",
    "LogLikelihood",
    "Metric",
    "Midpoint",
    "NetworkDenoiser",
    "NonFiniteError",
    "PipelineModel",
    "PipelineSampler",
    "Prediction",
    "Purified",
    "RecomputationError",
    "RectifiedFlow",
    "Reversible",
    "SDEDPMSolverPP",
    "Sampler",
    "Schedule",
    "Solver",
    "Stats",
    "StepNoise",
    "TokenRows",
    "Truncated",
    "UnusedRowsWarning",
    "VPCosine",
    "VPDiscrete",
    "VPLinear",
    "WeightsWarning",
    "attacks",
    "compare",
    "differentiable",
    "gradients",
    "grids",
    "image_grid",
    "load_bundled",
    "load_classifier",
    "load_noise",
    "metrics",
    "optimization",
    "save_lora",
    "save_noise",
    "save_textual_inversion",
    "tasks",
    "zoo",
]

__version__ = "0.1.0"

# All is imported when it is first used, so that `adjointdpm --help` needs no torch. What a gradient needs comes at
# once; files, pages and tasks, which take half of the time, come one by one.
_GRADIENTS = {
    "_types": "AdjointDPMError Cond DriftError InputError NonFiniteError RecomputationError Stats",
    "adjoints": "Adjoint Backprop Checkpointed CoarseAdjoint Continuous DRTune DirectAlign FlowBP LeapAlign "
    "Reversible Truncated",
    "adjoints.likelihood": "LogLikelihood",
    "analysis.gradients": "Gradients gradients",
    "flow": "grids",
    "flow.denoisers": "Denoiser NetworkDenoiser Prediction",
    "flow.model": "DiffusionModel",
    "flow.schedules": "EDMSchedule RectifiedFlow Schedule VPCosine VPDiscrete VPLinear",
    "metrics.base": "Metric",
    "pipelines.checks": "UnusedRowsWarning WeightsWarning",
    "pipelines.differentiable": "differentiable",
    "pipelines.pipeline_model": "PipelineModel",
    "pipelines.token_embeddings": "TokenRows",
    "samplers.base": "Sampler",
    "samplers.flow_sampler": "FlowSampler",
    "samplers.pipeline_sampler": "PipelineSampler",
    "samplers.purified": "Purified",
    "solvers": "RK4 AdamsBashforth Ancestral Coupled DPMSolverPP Euler EulerMaruyama Heun Midpoint "
    "SDEDPMSolverPP Solver",
    "solvers.inversion": "InversionError",
    "solvers.step_noise": "StepNoise",
}
_LATER = {
    "analysis.comparison": "compare",
    "analysis.comparison_report": "Comparison",
    "files.diffusers_files": "load_noise save_lora save_noise save_textual_inversion",
    "files.image_grid": "image_grid",
    "zoo": "load_bundled load_classifier",
}
_MODULES = ("attacks", "metrics", "optimization", "tasks", "zoo")


def __getattr__(name: str) -> Any:
    if name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in _MODULES:
        return import_module(f".{name}", __name__)
    for home, names in _LATER.items():
        if name in names.split():
            return getattr(import_module(f".{home}", __name__), name)
    for home, names in _GRADIENTS.items():
        module = import_module(f".{home}", __name__)
        globals().update({each: getattr(module, each) for each in names.split()})
    if name in globals():
        return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
