"""How a classifier is hardened."""

from dataclasses import dataclass, replace
from typing import Annotated

from ..._types import Range, check_settings
from ..audit.settings import AuditSettings
from ..settings import Count, Length

__all__ = ["HardenSettings"]


@dataclass(frozen=True, kw_only=True)
class HardenSettings:
    """How a classifier is hardened. What was attacked is repeated until it is half as much as the clean images.

    Args:
        rounds: Number of rounds of fine-tuning. Each but the first attacks anew.
        steps: Number of steps of each fine-tuning.
        clean: Number of images for each prompt to train on that are not attacked. A few images, seen too often, are
            learned by heart.
        variants: Number of steps to each image's worst variant; 0 for no variants. Half of the loss is that of the
            image moved, bent and tinted, which teaches more of a few images, but not where a mirror or a tint would
            change a label.
        learning_rate: Step length of the optimizer (Adam), above 0.
        batch_size: Number of images for each step.
        clean_others: Number of images to train on for each prompt that is not audited.
        held_out: Number of fresh images for each prompt on which the clean accuracy is measured.
        seed: Random seed of the clean images and the batches; fresh starts are drawn from another.
        attack: Attacks of the later rounds; the audit's own if it is not given. Fewer steps leave time for more rounds.
        t: Where the steps of the fine-tuning, in turn, attack their clean images of the audited prompts: 0 for their
            latents, of which the decoder alone is differentiated; above 0 for latents noised to that share of the
            schedule, from which the last steps of the sampling go on; none for no such attacks. Several times find
            more than one. Of less than about three steps the judge does not recognize the images. May be repeated.
        late_steps: Number of steps of each of those attacks.
        late_half: Compute those attacks in bfloat16 (autocast); what is trained and measured keeps its precision.
        radius: Radius of the attacks used for hardening; that of the attacks by default. A larger ball finds images
            that lie further beyond the boundary, and those teach more.
        confidence: Confidence of the attacks used for hardening; that of the attacks by default.

    Raises:
        InputError: a number lies outside its range.
    """

    rounds: Count = 1
    steps: Count = 500
    clean: Count = 16
    variants: Annotated[int, Range(0)] = 3
    learning_rate: Length = 5e-4
    batch_size: Count = 48
    clean_others: Count = 4
    held_out: Count = 4
    seed: Annotated[int, Range(0, 2**63 - 1)] = 0
    attack: AuditSettings | None = None
    t: Annotated[tuple[float, ...], Range(0, 1)] = ()
    late_steps: Count = 1
    late_half: bool = False
    radius: Annotated[float | None, Range(0, open_low=True)] = None
    confidence: Annotated[float | None, Range(0)] = None

    def __post_init__(self) -> None:
        check_settings(self)

    def attacks(self, audited: AuditSettings) -> AuditSettings:
        """Return the settings of the attacks that are trained on, given those of the audit."""
        attack = self.attack or audited
        radius = attack.ball.radius if self.radius is None else self.radius
        confidence = attack.confidence if self.confidence is None else self.confidence
        return replace(attack, ball=replace(attack.ball, radius=radius), confidence=confidence)
