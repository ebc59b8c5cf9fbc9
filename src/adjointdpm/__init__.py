"""Gradients through diffusion samplers: exact by default, at the memory of one denoiser call."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._types import AdjointDPMError, Cond, DriftError, InputError, NonFiniteError, RecomputationError, Stats
from .adjoints import Adjoint, Backprop, Checkpointed, CoarseAdjoint, Continuous, Reversible, Truncated
from .analysis.gradients import Gradients, gradients
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

if TYPE_CHECKING:
    from . import metrics, optimization, tasks, zoo
    from .analysis.comparison import compare
    from .analysis.comparison_report import Comparison
    from .files.diffusers_files import load_noise, save_lora, save_noise, save_textual_inversion
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
    "NetworkDenoiser",
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
    "metrics",
    "optimization",
    "save_lora",
    "save_noise",
    "save_textual_inversion",
    "tasks",
    "zoo",
]

__version__ = "0.1.0"

# What a gradient does not need is imported when it is first used: files, pages and tasks take half of the time.
_MODULES = ("metrics", "optimization", "tasks", "zoo")
_LATER = {
    "Comparison": ".analysis.comparison_report",
    "compare": ".analysis.comparison",
    "load_bundled": ".zoo",
    "load_classifier": ".zoo",
    "load_noise": ".files.diffusers_files",
    "save_lora": ".files.diffusers_files",
    "save_noise": ".files.diffusers_files",
    "save_textual_inversion": ".files.diffusers_files",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f".{name}", __name__)
    if name in _LATER:
        return getattr(import_module(_LATER[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
