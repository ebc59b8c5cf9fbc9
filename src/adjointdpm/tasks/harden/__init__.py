"""Harden a classifier against what an audit finds."""

from .harden import HardenResult, HardenSettings, harden

__all__ = ["HardenResult", "HardenSettings", "harden"]
