"""Solvers: Runge-Kutta, multistep, reversible and stochastic; each is a tableau or a formula."""

from .base import Solver
from .multistep import AdamsBashforth, DPMSolverPP
from .reversible import Coupled
from .runge_kutta import RK4, Euler, Heun, Midpoint
from .stochastic import Ancestral, EulerMaruyama, SDEDPMSolverPP

__all__ = [
    "RK4",
    "AdamsBashforth",
    "Ancestral",
    "Coupled",
    "DPMSolverPP",
    "Euler",
    "EulerMaruyama",
    "Heun",
    "Midpoint",
    "SDEDPMSolverPP",
    "Solver",
]
