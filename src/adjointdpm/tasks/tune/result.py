"""What a tuning found: beside no tuning and beside the usual alternative."""

from dataclasses import dataclass

from ..methods import MethodsResult

__all__ = ["TuneResult"]


@dataclass(frozen=True, eq=False)
class TuneResult(MethodsResult):
    """What "untuned", "metric" and, where it was asked for, "denoising" made; the weights are in `artefact`.

    The costs are the bytes saved for backward and the denoiser calls of an image, the number of weights, and seconds.
    """
