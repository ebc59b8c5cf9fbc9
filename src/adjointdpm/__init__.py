"""Gradients through diffusion samplers: exact by default, at the memory of one denoiser call."""

from ._types import AdjointDPMError, Cond, InputError, NonFiniteError, Stats
from .adjoints import Adjoint, Backprop, Checkpointed, Continuous, Truncated
from .denoisers import Prediction
from .grids import karras, log_snr, uniform
from .sampler import FlowSampler, Sampler
from .schedules import EDM, RectifiedFlow, Schedule, VPCosine, VPDiscrete, VPLinear
from .solvers import RK4, AdamsBashforth, DPMSolverPP, Euler, Heun, Midpoint, Solver

__all__ = [
    "EDM",
    "RK4",
    "AdamsBashforth",
    "Adjoint",
    "AdjointDPMError",
    "Backprop",
    "Checkpointed",
    "Cond",
    "Continuous",
    "DPMSolverPP",
    "Euler",
    "FlowSampler",
    "Heun",
    "InputError",
    "Midpoint",
    "NonFiniteError",
    "Prediction",
    "RectifiedFlow",
    "Sampler",
    "Schedule",
    "Solver",
    "Stats",
    "Truncated",
    "VPCosine",
    "VPDiscrete",
    "VPLinear",
    "karras",
    "log_snr",
    "uniform",
]

__version__ = "0.1.0"
