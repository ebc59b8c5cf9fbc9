"""Gradients as values: exact by recomputation, truncated, or the paper's adjoint ODE."""

from .base import Adjoint
from .continuous import Continuous
from .discrete import Backprop, Checkpointed, Truncated

__all__ = ["Adjoint", "Backprop", "Checkpointed", "Continuous", "Truncated"]
