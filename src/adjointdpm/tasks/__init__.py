"""The tasks of the paper, each one call that ends in files and a page."""

from .attack import NoiseClassifier, pixels
from .audit import audit
from .balls import Ball
from .guide import GuideResult, GuideSettings, guide
from .harden import HardenResult, HardenSettings, harden
from .inversion import EffectGoal, PromptGoal, PromptRows, TokenVectors
from .invert import InvertResult, InvertSettings, invert
from .loop import InterruptedRunError, Outcome, StoppedRunError, optimise
from .result import AuditResult
from .settings import AuditSettings
from .task import Loop, Losses, Task
from .trajectory import LookAhead, guided
from .tune import TuneSettings, tune
from .tuned import TuneResult
from .tuning import Lora, Subset

__all__ = [
    "AuditResult",
    "AuditSettings",
    "Ball",
    "EffectGoal",
    "GuideResult",
    "GuideSettings",
    "HardenResult",
    "HardenSettings",
    "InterruptedRunError",
    "InvertResult",
    "InvertSettings",
    "LookAhead",
    "Loop",
    "Lora",
    "Losses",
    "NoiseClassifier",
    "Outcome",
    "PromptGoal",
    "PromptRows",
    "StoppedRunError",
    "Subset",
    "Task",
    "TokenVectors",
    "TuneResult",
    "TuneSettings",
    "audit",
    "guide",
    "guided",
    "harden",
    "invert",
    "optimise",
    "pixels",
    "tune",
]
