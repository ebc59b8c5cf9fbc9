"""The tasks of the paper, each one call that ends in files and a page."""

from ..optimization.loop import InterruptedRunError, Outcome, StoppedRunError, optimize
from ..optimization.task import LoopSettings, Losses, RunOptions, Task
from .audit import (
    AuditResult,
    AuditSettings,
    Ball,
    ImageAuditResult,
    NoiseClassifier,
    audit,
    audit_images,
    pixels,
)
from .guide import GuideResult, GuideSettings, LookAhead, guide, guided
from .harden import HardenResult, HardenSettings, harden
from .invert import (
    EffectGoal,
    ImageGoal,
    InvertResult,
    InvertSettings,
    MetricGoal,
    PromptGoal,
    PromptRows,
    TokenVectors,
    invert,
)
from .methods import MethodResult
from .report import load_result
from .solve import SolvedImage, SolveResult, SolveSettings, solve
from .tune import Lora, Subset, TuneResult, TuneSettings, shard, tune

__all__ = [
    "AuditResult",
    "AuditSettings",
    "Ball",
    "EffectGoal",
    "GuideResult",
    "GuideSettings",
    "HardenResult",
    "HardenSettings",
    "ImageAuditResult",
    "ImageGoal",
    "InterruptedRunError",
    "InvertResult",
    "InvertSettings",
    "LookAhead",
    "LoopSettings",
    "Lora",
    "Losses",
    "MethodResult",
    "MetricGoal",
    "NoiseClassifier",
    "Outcome",
    "PromptGoal",
    "PromptRows",
    "RunOptions",
    "SolveResult",
    "SolveSettings",
    "SolvedImage",
    "StoppedRunError",
    "Subset",
    "Task",
    "TokenVectors",
    "TuneResult",
    "TuneSettings",
    "audit",
    "audit_images",
    "guide",
    "guided",
    "harden",
    "invert",
    "load_result",
    "optimize",
    "pixels",
    "shard",
    "solve",
    "tune",
]
