"""Solvers: Runge-Kutta, multistep and reversible, each a tableau or a formula, an order and a docstring."""

from .base import Solver
from .multistep import AdamsBashforth, DPMSolverPP
from .reversible import Coupled
from .runge_kutta import RK4, Euler, Heun, Midpoint

__all__ = ["RK4", "AdamsBashforth", "Coupled", "DPMSolverPP", "Euler", "Heun", "Midpoint", "Solver"]
