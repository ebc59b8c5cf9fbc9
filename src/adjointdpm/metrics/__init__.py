"""Metrics on finished images: one differentiable value an image, from (batch, 3, height, width).

Any callable from images to values can serve as a metric. The metrics here are frozen dataclasses: they can be added
up (`style + 0.5 * content`), and each contains its own preprocessing. Lower is better in all of them; a reward,
whose higher values are better, counts with a minus (`metrics.rewards`).
"""

from . import operators, rewards
from .base import Paired, Prompted, Sum, Weighable, beside, for_prompts
from .classifier_losses import Logit, LogProbability, Margin
from .clip import ClipDistance, load_clip
from .effects import EFFECTS, EffectDistance, effect
from .frames import OverFrames, WholeVideo, for_medium
from .import_by_name import user_function
from .measured import Measured
from .pixels import BackgroundColour, Chroma, PixelDistance, Pixels
from .preprocess import CLIP, IMAGENET, Preprocess
from .similarity import psnr, ssim
from .sliced_wasserstein import SlicedWasserstein, patches_and_details
from .spectrogram import SpectrogramDistance
from .style_content import Content, ContentDistance, HiddenStates, Layers, Style, gram

__all__ = [
    "CLIP",
    "EFFECTS",
    "IMAGENET",
    "BackgroundColour",
    "Chroma",
    "ClipDistance",
    "Content",
    "ContentDistance",
    "EffectDistance",
    "HiddenStates",
    "Layers",
    "LogProbability",
    "Logit",
    "Margin",
    "Measured",
    "OverFrames",
    "Paired",
    "PixelDistance",
    "Pixels",
    "Preprocess",
    "Prompted",
    "SlicedWasserstein",
    "SpectrogramDistance",
    "Style",
    "Sum",
    "Weighable",
    "WholeVideo",
    "beside",
    "effect",
    "for_medium",
    "for_prompts",
    "gram",
    "load_clip",
    "operators",
    "patches_and_details",
    "psnr",
    "rewards",
    "ssim",
    "user_function",
]
