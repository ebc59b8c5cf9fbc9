"""A small sampler with prompts to tune it for."""

from tests.tiny.families import FAMILIES


def family(name="sd"):
    return next(each for each in FAMILIES if each.name == name)


def sampler(pipe=None, **settings):
    return family().sampler(pipe or family().make(), **{"steps": 2, "guidance_scale": 3.0} | settings)


def colours(images):
    return [images]


PROMPTS, HELD_OUT = ["a cat", "a dog"], ["a pear"]
