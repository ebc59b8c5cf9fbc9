"""Gradients through diffusion samplers: exact by default, at the memory of one denoiser call."""

from ._types import (
    AdjointDPMError,
    Cond,
    DriftError,
    InputError,
    NonFiniteError,
    RecomputationError,
    Stats,
)
from .adjoints import Adjoint, Backprop, Checkpointed, Continuous, Reversible, Truncated
from .brownian import Brownian
from .compare import compare
from .comparison import Comparison
from .denoisers import Prediction
from .formats import load_noise, save_lora, save_noise, save_textual_inversion
from .gradients import Gradients, Metric, gradients
from .grids import karras, log_snr, uniform
from .pipeline_sampler import PipelineSampler
from .pipelines import differentiable
from .sampler import FlowSampler, Sampler
from .schedules import EDM, RectifiedFlow, Schedule, VPCosine, VPDiscrete, VPLinear
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
from .tokens import TokenRows
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
    "VPCosine",
    "VPDiscrete",
    "VPLinear",
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
