"""The tasks of the paper, each one call that ends in files and a page."""

from .attack import NoiseClassifier, hidden_states, pixels
from .audit import audit
from .balls import Ball
from .harden import HardenResult, HardenSettings, harden
from .loop import InterruptedRunError, Outcome, StoppedRunError, optimise
from .result import AuditResult
from .settings import AuditSettings
from .task import Loop, Losses, Task

__all__ = [
    "AuditResult",
    "AuditSettings",
    "Ball",
    "HardenResult",
    "HardenSettings",
    "InterruptedRunError",
    "Loop",
    "Losses",
    "NoiseClassifier",
    "Outcome",
    "StoppedRunError",
    "Task",
    "audit",
    "harden",
    "hidden_states",
    "optimise",
    "pixels",
]
