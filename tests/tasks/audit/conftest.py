"""The audit that several tests of its parts read."""

from tests.tiny.audits import result

__all__ = ["result"]
