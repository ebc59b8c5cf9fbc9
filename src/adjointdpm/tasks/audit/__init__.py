"""Audit a classifier by noise that an attack finds."""

from ...attacks.norm_ball import Ball
from .attack import NoiseClassifier, pixels
from .audit import audit
from .image_audit import audit_images
from .image_result import ImageAuditResult
from .result import AuditResult
from .settings import AuditSettings

__all__ = [
    "AuditResult",
    "AuditSettings",
    "Ball",
    "ImageAuditResult",
    "NoiseClassifier",
    "audit",
    "audit_images",
    "pixels",
]
