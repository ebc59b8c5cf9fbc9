"""Reconstruct images from measurements of them."""

from .result import SolvedImage, SolveResult
from .solve import SolveSettings, solve
from .solvers import METHODS, solved

__all__ = ["METHODS", "SolveResult", "SolveSettings", "SolvedImage", "solve", "solved"]
