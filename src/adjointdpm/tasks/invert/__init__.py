"""Invert an effect or an image to a token or a prompt."""

from .invert import InvertResult, InvertSettings, invert
from .learned_token import EffectGoal, PromptGoal, PromptRows, TokenVectors

__all__ = [
    "EffectGoal",
    "InvertResult",
    "InvertSettings",
    "PromptGoal",
    "PromptRows",
    "TokenVectors",
    "invert",
]
