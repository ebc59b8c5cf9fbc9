"""The audit that several tests of its parts read."""

from tests.tiny.audits import result
from tests.tiny.image_audits import image_result

__all__ = ["image_result", "result"]
