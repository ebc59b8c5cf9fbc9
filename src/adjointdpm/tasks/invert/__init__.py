"""Invert an effect or an image to a token or a prompt."""

from .goals import EffectGoal, ImageGoal, MetricGoal, PromptGoal
from .invert import InvertResult, InvertSettings, invert
from .learned_token import PromptRows, TokenVectors

__all__ = [
    "EffectGoal",
    "ImageGoal",
    "InvertResult",
    "InvertSettings",
    "MetricGoal",
    "PromptGoal",
    "PromptRows",
    "TokenVectors",
    "invert",
]
