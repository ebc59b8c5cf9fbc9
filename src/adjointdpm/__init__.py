"""Gradients through diffusion samplers: exact by default, at the memory of one denoiser call."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._types import (
        AdjointDPMError,
        Cond,
        DriftError,
        InputError,
        NonFiniteError,
        RecomputationError,
        Stats,
    )
    from .adjoints import Adjoint, Backprop, Checkpointed, CoarseAdjoint, Continuous, Reversible, Truncated
    from .analysis.comparison import compare
    from .analysis.comparison_report import Comparison
    from .analysis.gradients import Gradients, gradients
    from .files.diffusers_files import load_noise, save_lora, save_noise, save_textual_inversion
    from .flow import grids
    from .flow.denoisers import Denoiser, Prediction
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
    from .solvers.step_noise import StepNoise
    from .zoo import load_bundled, load_classifier
    from . import tasks  # isort: skip

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
    "Denoiser",
    "DiffusionModel",
    "DriftError",
    "EDMSchedule",
    "Euler",
    "EulerMaruyama",
    "FlowSampler",
    "Gradients",
    "Heun",
    "InputError",
    "Metric",
    "Midpoint",
    "NonFiniteError",
    "PipelineModel",
    "PipelineSampler",
    "Prediction",
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
    "compare",
    "differentiable",
    "gradients",
    "grids",
    "load_bundled",
    "load_classifier",
    "load_noise",
    "save_lora",
    "save_noise",
    "save_textual_inversion",
    "tasks",
]

__version__ = "0.1.0"

_HOMES = {
    "_types": "AdjointDPMError Cond DriftError InputError NonFiniteError RecomputationError Stats",
    "adjoints": "Adjoint Backprop Checkpointed CoarseAdjoint Continuous Reversible Truncated",
    "analysis.comparison": "compare",
    "analysis.comparison_report": "Comparison",
    "analysis.gradients": "Gradients gradients",
    "files.diffusers_files": "load_noise save_lora save_noise save_textual_inversion",
    "flow": "grids",
    "flow.denoisers": "Denoiser Prediction",
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
    "solvers": "RK4 AdamsBashforth Ancestral Coupled DPMSolverPP Euler EulerMaruyama Heun Midpoint SDEDPMSolverPP "
    "Solver",
    "solvers.step_noise": "StepNoise",
    "zoo": "load_bundled load_classifier",
}
"""Where the public names are. They are imported when one is used, so that `adjointdpm --help` needs no torch."""


def __getattr__(name: str) -> Any:
    """Import all public names, and with them the packages, when the first is used."""
    if name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    for home, names in _HOMES.items():
        module = import_module(f".{home}", __name__)
        globals().update({each: getattr(module, each) for each in names.split()})
    import_module(".tasks", __name__)
    if name not in globals():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
