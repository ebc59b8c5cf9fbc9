"""Reconstruct images from measurements of them."""

from .solve import SolveResult, SolveSettings, solve
from .solvers import METHODS, solved

__all__ = ["METHODS", "SolveResult", "SolveSettings", "solve", "solved"]
