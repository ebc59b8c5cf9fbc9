"""Gradients as values: exact by recomputation or reversal, truncated, or the flow's on fewer nodes."""

from .base import Adjoint
from .coarse import CoarseAdjoint
from .continuous import Continuous
from .discrete import Backprop, Checkpointed, Truncated
from .reversible import Reversible
from .saved_bytes import BudgetExceededError

__all__ = [
    "Adjoint",
    "Backprop",
    "BudgetExceededError",
    "Checkpointed",
    "CoarseAdjoint",
    "Continuous",
    "Reversible",
    "Truncated",
]
