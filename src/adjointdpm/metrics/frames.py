"""Metrics of videos: the mean of a metric of images over frames, and functions of whole videos.

    L(x) = 1/F sum_f L(x_f)            x = (x_1 .. x_F) a video, (batch, frames, 3, height, width)

Of some frames, drawn at random for each step of an optimization, it is an unbiased estimate of the mean over all.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from jaxtyping import Float
from torch import Tensor

from .._types import InputError
from .base import AnySamples, Composed, Plain, Sum, Values, Weighable, beside, for_prompts, name_of
from .check import score

__all__ = ["OverFrames", "WholeVideo", "for_medium", "needs_all_frames"]

Videos = Float[Tensor, "batch frames channels height width"]


@dataclass(frozen=True, eq=False)
class OverFrames(Composed):
    """The mean of a metric of images over the frames of a video.

        L(x) = 1/F sum_f L(x_f)

    Tasks and `gradients` apply it by themselves to each metric of images where the sampler makes videos. Use it in a
    loop of your own. Do not use it for what is between frames, such as flicker: that is a `WholeVideo`.

    A `Paired` metric compares each frame with the same frame of the other video, and a `Prompted` one reads the video's
    prompt at each frame.

    Args:
        metric: of images (batch, 3, height, width).

    Raises:
        InputError: when called, images instead of videos, or a metric that has no value for each frame.
        NonFiniteError: when called, a value that is NaN or infinite.

    Examples:
        >>> import torch
        >>> import adjointdpm as adp
        >>> video = torch.stack([torch.zeros(3, 8, 8), torch.ones(3, 8, 8)])[None]
        >>> adp.metrics.OverFrames(lambda images: images.mean((1, 2, 3)))(video).tolist()
        [0.5]
    """

    metric: Plain
    others: Tensor | None = None
    """The videos that a `Paired` metric compares with; `beside` sets them."""
    prompts: tuple[str, ...] | None = None
    """The prompts that a `Prompted` metric reads; `for_prompts` sets them."""

    @property
    def parts(self) -> Sequence[Plain]:
        """The metric of images."""
        return [self.metric]

    @property
    def name(self) -> str:
        """That of the metric of images."""
        return f"{name_of(self.metric)} over frames"

    def beside(self, others: Videos) -> "OverFrames":
        """Return the metric that compares each frame with that of other videos.

        Args:
            others: (batch, frames, 3, height, width), of as many frames as the videos.

        Returns:
            a metric of a batch of the same size.
        """
        return replace(self, others=others)

    def for_prompts(self, prompts: Sequence[str]) -> "OverFrames":
        """Return the metric of videos that were made for given prompts.

        Args:
            prompts: one for each video of a batch, or a single one for all of them.

        Returns:
            the metric of videos alone.
        """
        return replace(self, prompts=tuple(prompts))

    def __call__(self, videos: AnySamples) -> Values:
        if videos.ndim != 5:
            raise InputError(
                f"a metric over frames is of videos (batch, frames, 3, height, width), but got {tuple(videos.shape)}"
            )
        metric, frames = self.metric, videos.shape[1]
        if self.prompts is not None:
            texts = self.prompts if len(self.prompts) > 1 else self.prompts * len(videos)
            metric = for_prompts(metric, [text for text in texts for _ in range(frames)])
        if self.others is not None:
            metric = beside(metric, self.others.flatten(0, 1))
        values = score(metric, videos.flatten(0, 1))
        return values.unflatten(0, (len(videos), frames)).mean(1)


@dataclass(frozen=True, eq=False)
class WholeVideo(Weighable):
    """Your own metric of whole videos, which is not averaged over frames.

        L(x) = function(x)

    Use it for what is between frames, such as flicker or motion. It needs all frames of a video.

    Args:
        function: videos (batch, frames, 3, height, width) to a tensor (batch,); lower is better.

    Examples:
        >>> import torch
        >>> import adjointdpm as adp
        >>> def flicker(videos):
        ...     return videos.diff(dim=1).square().mean((1, 2, 3, 4))
        >>> metric = adp.metrics.WholeVideo(flicker) + 0.5 * adp.metrics.OverFrames(adp.metrics.Chroma())
        >>> metric(torch.ones(1, 4, 3, 8, 8)).tolist()
        [0.0]
    """

    function: Callable[[Tensor], Tensor]

    def __call__(self, videos: Tensor) -> Tensor:
        return self.function(videos)


def for_medium(metric: Plain, medium: str) -> Plain:
    """Return a metric of what a sampler makes.

    Args:
        metric: of images; or, of videos, a `WholeVideo` or an `OverFrames`; or of waveforms.
        medium: the sampler's, "image", "video" or "audio".

    Returns:
        for videos, the metric with each term that is of images averaged over frames; else the metric itself.

    Examples:
        >>> import adjointdpm as adp
        >>> from adjointdpm.metrics.base import name_of
        >>> name_of(adp.metrics.for_medium(adp.metrics.Chroma(), "video"))
        'Chroma over frames'
    """
    if medium != "video" or isinstance(metric, OverFrames | WholeVideo):
        return metric
    if isinstance(metric, Sum):
        return Sum(tuple((weight, for_medium(term, medium)) for weight, term in metric.terms))
    return OverFrames(metric)


def needs_all_frames(metric: Plain) -> bool:
    """Return whether a metric, or a term of it, is of whole videos."""
    if isinstance(metric, Composed):
        return any(needs_all_frames(part) for part in metric.parts)
    return isinstance(metric, WholeVideo)
