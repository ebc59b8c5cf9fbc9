"""The settings of an audit."""

from dataclasses import dataclass, field
from typing import Annotated

from ..._types import Range
from ...attacks.norm_ball import Ball
from ..noise_optimization import NoiseSettings
from ..settings import Count, Length

__all__ = ["AuditSettings"]


@dataclass(frozen=True, kw_only=True)
class AuditSettings(NoiseSettings):
    """What an audit does.

    Args:
        ball: Where the noise may be; its radius is the main one.
        radii: Further radius, for the curve of success against the ball's size. May be repeated.
        num_starts: Number of images for each prompt.
        tries: Number of noises tried for each image until the classifier reads it right.
        learning_rate: Length of a step, as a fraction of the ball's radius.
        momentum: Momentum of the normalized steps, from 0 to 1 (Dong et al., 2018, arXiv 1710.06081).
        confidence: Margin of logits by which the classifier is to be wrong before only the image's likeness counts.
        keep_weight: Weight of staying near the original image.
        stop_at_success: Optimize an image no more once its saved file misleads the classifier; the steps after that
            only make it a surer and a nearer one.
        controls: Also try random noise and SPSA in the same ball.
        train_batch_size: Number of images that are differentiated at once.
    """

    ball: Ball = field(default_factory=Ball)
    radii: Annotated[tuple[float, ...], Range(0, open_low=True)] = ()
    num_starts: Count = 1
    tries: Count = 4
    max_train_steps: Count = 20
    learning_rate: Length = 0.25
    momentum: Annotated[float, Range(0, 1)] = 0.0
    confidence: Annotated[float, Range(0)] = 1.0
    keep_weight: Annotated[float, Range(0)] = 1.0
    stop_at_success: bool = False
    controls: bool = True
    train_batch_size: Count = 8
    checkpointing_steps: Annotated[int, Range(0)] = 5
