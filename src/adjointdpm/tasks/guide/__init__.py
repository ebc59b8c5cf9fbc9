"""Guide the noise of single images by a metric."""

from .guide import GuideResult, GuideSettings, guide
from .look_ahead import LookAhead, guided

__all__ = ["GuideResult", "GuideSettings", "LookAhead", "guide", "guided"]
