"""Tune weights to a metric."""

from .shard import shard
from .trainable_weights import Lora, Subset
from .tune import TuneResult, TuneSettings, tune

__all__ = ["Lora", "Subset", "TuneResult", "TuneSettings", "shard", "tune"]
