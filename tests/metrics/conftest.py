"""The folder of a small classifier that several tests read."""

from tests.tiny.classifiers import folder

__all__ = ["folder"]
