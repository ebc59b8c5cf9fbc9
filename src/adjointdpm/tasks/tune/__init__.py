"""Tune weights to a metric."""

from .trainable_weights import Lora, Subset
from .tune import TuneResult, TuneSettings, tune

__all__ = ["Lora", "Subset", "TuneResult", "TuneSettings", "tune"]
