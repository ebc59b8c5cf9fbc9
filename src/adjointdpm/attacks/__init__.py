"""Attacks on classifiers, of images and of noise, judged on fresh draws of what is attacked.

found = Attack(ball=ImageBall(8 / 255), draws=16)(surrogate(purified), images, labels)
judged(purified, found.x, labels).majority
"""

from .attack import Attack, Found
from .methods import APGD, PGD, Method
from .norm_ball import Ball, ImageBall, Region
from .random_search import random_search
from .surrogate import surrogate
from .verdict import Verdict, judged

__all__ = [
    "APGD",
    "PGD",
    "Attack",
    "Ball",
    "Found",
    "ImageBall",
    "Method",
    "Region",
    "Verdict",
    "judged",
    "random_search",
    "surrogate",
]
