"""A small sampler whose prompts can hold a learned word."""

from tests.tiny.families import FAMILIES


def sampler(pipe=None):
    family = next(each for each in FAMILIES if each.name == "sd")
    return family.sampler(pipe or family.make(), steps=2, guidance_scale=3.0)
