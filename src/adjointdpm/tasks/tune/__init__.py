"""Tune weights to a metric."""

from .result import TuneResult
from .trainable_weights import Lora, Subset
from .tune import TuneSettings, tune

__all__ = ["Lora", "Subset", "TuneResult", "TuneSettings", "tune"]
