"""Harden a classifier against what an audit finds."""

from .harden import HardenResult, harden
from .settings import HardenSettings

__all__ = ["HardenResult", "HardenSettings", "harden"]
