"""Rewards: how good an image is for its prompt. Higher is better, so that as a metric a reward counts with a minus.

    L(x; p) = -r(x, p)              a `Reward`
    L(x; p) = max(c - r(x, p), 0)   `reward.at_least(c)`, which asks for no more than c

ClipScore, PickScore, HPSv2   the cosine of CLIP's embeddings of image and prompt, each with its own scale
ImageReward                   a BLIP that reads image and prompt together and was trained on rankings of images
Aesthetic                     a head on CLIP's embedding of the image; it reads no prompt
Preference                    a network that was fitted to choices between two images; it reads no prompt
FunctionReward                your own r(images, prompts)

A reward is a network's opinion, and an optimization can raise it without changing what a person sees. So judge what was
tuned by another network, which was in no loss.
"""

from .aesthetic import Aesthetic, load_aesthetic
from .clip_rewards import ClipScore, HPSv2, PickScore
from .image_reward import ImageReward, load_image_reward
from .preference import Preference, read_preference
from .reward import FunctionReward, Reward, Threshold, check_prompts_matter

__all__ = [
    "Aesthetic",
    "ClipScore",
    "FunctionReward",
    "HPSv2",
    "ImageReward",
    "PickScore",
    "Preference",
    "Reward",
    "Threshold",
    "check_prompts_matter",
    "load_aesthetic",
    "load_image_reward",
    "read_preference",
]
