"""`adjointdpm sample`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch

from .._types import Range
from ..files.atomic_write import write_file
from ..files.images import as_8_bit, png
from .flags import Given, Positional, PromptTexts
from .options import BundledOptions, FolderOptions, free_folder, in_one_process
from .parse_sampler import check_memory

__all__ = ["Sample", "SampleOptions"]

TOGETHER = 16  # images that are made at once


@dataclass(frozen=True)
class SampleOptions:
    """Which images are made.

    Args:
        prompt: Prompt such as "a red apple on a blue background". May be repeated, or be a file of prompts.
        batch: Number of images for each prompt.
    """

    prompt: Annotated[tuple[str, ...], Positional, PromptTexts()]
    batch: Annotated[int, Range(1)] = 4


@dataclass(frozen=True)
class Sample:
    """The flags of `adjointdpm sample`."""

    task: SampleOptions
    model: BundledOptions
    output: FolderOptions = FolderOptions(Path("outputs/sample"))

    def run(self, given: Given) -> None:
        """Make the images, and print where they are."""
        in_one_process(given.command)
        pattern = "[0-9][0-9]*-[0-9][0-9]*.png"
        folder = free_folder(self.output.output_dir, pattern, overwrite=self.output.overwrite)
        sampler = self.model.sampler()
        check_memory(sampler, self.task.batch, TOGETHER)
        conditions = [sampler.encode(each) for each in self.task.prompt]
        noise = sampler.noise(self.task.batch, self.model.seed)
        for number, cond in enumerate(conditions):
            for first in range(0, len(noise), TOGETHER):
                with torch.no_grad():
                    images = as_8_bit(sampler(noise[first : first + TOGETHER], cond))
                for i, image in enumerate(images, first):
                    path = folder / f"{number:02d}-{i:02d}.png"
                    write_file(path, png(image))
                    print(path)
