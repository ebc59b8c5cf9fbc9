"""Gradients as values: exact by recomputation or reversal, the flow's on fewer nodes, truncated, or a surrogate."""

from .base import Adjoint
from .coarse import CoarseAdjoint
from .continuous import Continuous
from .direct_align import DirectAlign
from .discrete import Backprop, Checkpointed, Truncated
from .drtune import DRTune
from .flowbp import FlowBP
from .leap_align import LeapAlign
from .reversible import Reversible
from .saved_bytes import BudgetExceededError
from .surrogate import Surrogate

__all__ = [
    "Adjoint",
    "Backprop",
    "BudgetExceededError",
    "Checkpointed",
    "CoarseAdjoint",
    "Continuous",
    "DRTune",
    "DirectAlign",
    "FlowBP",
    "LeapAlign",
    "Reversible",
    "Surrogate",
    "Truncated",
]
