"""The tasks of the paper, each one call that ends in files and a page."""

from .loop import InterruptedRunError, Loop, Losses, Outcome, StoppedRunError, Task, optimise

__all__ = ["InterruptedRunError", "Loop", "Losses", "Outcome", "StoppedRunError", "Task", "optimise"]
