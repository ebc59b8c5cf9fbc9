"""Gradients through diffusion samplers: exact by default, at the memory of one denoiser call."""

from ._types import AdjointDPMError, Cond, DriftError, InputError, NonFiniteError, RecomputationError, Stats
from .adjoints import Adjoint, Backprop, Checkpointed, Continuous, Reversible, Truncated
from .analysis.comparison import compare
from .analysis.comparison_report import Comparison
from .analysis.gradients import Gradients, gradients
from .files.diffusers_files import load_noise, save_lora, save_noise, save_textual_inversion
from .flow.denoisers import Prediction
from .flow.grids import karras, log_snr, uniform
from .flow.schedules import EDM, RectifiedFlow, Schedule, VPCosine, VPDiscrete, VPLinear
from .metrics.base import Metric
from .pipelines.checks import UnusedRowsWarning, WeightsWarning
from .pipelines.differentiable import differentiable
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
from .solvers.step_noise import Brownian
from .zoo import load, load_classifier

from . import tasks  # isort: skip

__all__ = [
    "EDM",
    "RK4",
    "AdamsBashforth",
    "Adjoint",
    "AdjointDPMError",
    "Ancestral",
    "Backprop",
    "Brownian",
    "Checkpointed",
    "Comparison",
    "Cond",
    "Continuous",
    "Coupled",
    "DPMSolverPP",
    "DriftError",
    "Euler",
    "EulerMaruyama",
    "FlowSampler",
    "Gradients",
    "Heun",
    "InputError",
    "Metric",
    "Midpoint",
    "NonFiniteError",
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
    "karras",
    "load",
    "load_classifier",
    "load_noise",
    "log_snr",
    "save_lora",
    "save_noise",
    "save_textual_inversion",
    "tasks",
    "uniform",
]

__version__ = "0.1.0"
