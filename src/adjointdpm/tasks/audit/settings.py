"""What an audit is told: its settings, and what the pictures show."""

from dataclasses import dataclass, field

from ..._types import InputError
from .norm_ball import Ball

__all__ = ["AuditSettings"]


@dataclass(frozen=True)
class AuditSettings:
    """What an audit does.

    Args:
        ball: where the noise may be; its radius is the main one.
        radii: further radii, for the curve of success against the ball's size.
        starts: pictures a prompt.
        tries: noises tried for each of them until the classifier reads the picture right.
        steps: of the optimization.
        learning_rate: a step's length, as a fraction of the ball's radius.
        momentum: of the normalized steps (Dong et al., 2018, arXiv 1710.06081).
        confidence: logits by which the classifier is to be wrong before only the picture's likeness counts.
        keep_weight: of that likeness; see `tasks.attack`.
        controls: whether random noise and SPSA are tried, too.
        batch_size: pictures at once.
        seed: of everything that is drawn.
        checkpointing_steps: steps between checkpoints.
    """

    ball: Ball = field(default_factory=Ball)
    radii: tuple[float, ...] = ()
    starts: int = 1
    tries: int = 4
    steps: int = 20
    learning_rate: float = 0.25
    momentum: float = 0.0
    confidence: float = 1.0
    keep_weight: float = 1.0
    controls: bool = True
    batch_size: int = 8
    seed: int = 0
    checkpointing_steps: int = 5

    def __post_init__(self) -> None:
        for name in ("starts", "tries", "steps", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, but is {getattr(self, name)}")
        for name in ("confidence", "keep_weight"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} must not be negative, but is {getattr(self, name)}")
