"""Audit a classifier by noise that an attack finds."""

from ...attacks.norm_ball import Ball
from .attack import NoiseClassifier, pixels
from .audit import audit
from .result import AuditResult
from .settings import AuditSettings

__all__ = ["AuditResult", "AuditSettings", "Ball", "NoiseClassifier", "audit", "pixels"]
