"""`adjointdpm sample`."""

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from .._types import Range
from ..files.atomic_write import write_file
from ..files.diffusers_files import load_noise
from ..files.films import film
from ..files.html_report import Page, table_of
from ..files.images import as_8_bit, encoded
from ..files.sounds import as_16_bit, wav
from ..optimization.progress import progress
from ..samplers.base import Sampler
from ..tasks.frames import NOUNS
from ..tasks.report import facts_of
from .flags import Given, Group, PromptTexts
from .options import FolderOptions, ModelOptions, free_folder, in_one_process
from .parse_sampler import check_memory

__all__ = ["Sample", "SampleOptions"]

TOGETHER = 16  # images that are made at once
SHOWN = 16  # images of a prompt on the page
ROWS = 64  # prompts on the page


@dataclass(frozen=True)
class SampleOptions:
    """Which images are made.

    Args:
        prompt: Prompt such as "a red apple on a blue background". May be repeated, or be a file of prompts: txt, csv
            or jsonl.
        batch: Number of images for each prompt.
        seed: Random seed of the noise.
        noise: Safetensors file of noise, such as guide or audit wrote, that is used in place of a batch and a seed.
        output_format: Format of the image files: png, jpg or webp. Videos are webp, and sound is wav.
    """

    prompt: Annotated[tuple[str, ...], PromptTexts()]
    batch: Annotated[int, Range(1)] = 4
    seed: Annotated[int, Range(0, 2**63 - 1)] = 0
    noise: Path | None = None
    output_format: Literal["png", "jpg", "webp"] = "png"


@dataclass(frozen=True)
class Sample:
    """The flags of `adjointdpm sample`."""

    task: SampleOptions
    model: Annotated[ModelOptions, Group(without=("adjoint",))]
    output: FolderOptions = FolderOptions(Path("outputs/sample"))

    def run(self, given: Given) -> None:
        """Make the images and their page, and print where they are."""
        in_one_process(given.command)
        task = self.task
        saved = None if task.noise is None else load_noise(task.noise)
        if saved is not None:
            given.refuse_unused(("batch", "seed"), "with --noise, which holds the noise of every image")
        patterns = ("result.json", "[0-9][0-9]*-[0-9][0-9]*.*")
        folder = free_folder(self.output.output_dir, *patterns, overwrite=self.output.overwrite)
        sampler = self.model.sampler()
        if sampler.medium != "image":
            given.refuse_unused(("output_format",), f"with a model that makes {sampler.medium}")
        suffix = {"image": task.output_format, "video": "webp", "audio": "wav"}[sampler.medium]
        check_memory(sampler, task.batch, TOGETHER)
        conditions = [sampler.encode(each) for each in task.prompt]
        drawn = sampler.noise(task.batch if saved is None else 1, task.seed)
        noise = drawn if saved is None else saved[0].to(drawn.device)
        if saved is not None and saved[1].get("steps") not in (None, "", str(sampler.steps)):
            warnings.warn(
                f"{task.noise} is for {saved[1]['steps']} steps, but {sampler.steps} are made; its images differ",
                stacklevel=2,
            )
        made: list[dict[str, Any]] = []
        shown: list[list[tuple[str, Tensor]]] = [[] for _ in conditions]
        with progress("sample", len(conditions) * len(noise), self.output.quiet) as bar:
            for number, cond in enumerate(conditions):
                for first in range(0, len(noise), TOGETHER):
                    with torch.no_grad():
                        images = sampler(noise[first : first + TOGETHER], cond)
                    images = as_16_bit(images) if sampler.medium == "audio" else as_8_bit(images)
                    for i, image in enumerate(images, first):
                        path = folder / f"{number:02d}-{i:02d}.{suffix}"
                        write_file(path, _content(image, suffix, sampler.rate))
                        if i < SHOWN and number < ROWS:
                            shown[number].append((path.name, image))
                        source = {"seed": task.seed} if saved is None else {"noise": str(task.noise)}
                        made.append(
                            {"file": path.name, "prompt": task.prompt[number], **source, "index": i}
                        )
                        bar.write(str(path))
                        bar.update()
        write_file(folder / "result.json", (json.dumps(made, indent=1) + "\n").encode())
        write_file(folder / "config.yaml", given.as_yaml().encode())
        page = _page(task, sampler, given, len(noise))
        page.images(
            *(
                table_of(
                    prompt,
                    torch.stack([image for _, image in row]),
                    [name for name, _ in row],
                    sampler.rate,
                )
                for prompt, row in zip(task.prompt, shown[:ROWS], strict=False)
            )
        )
        page.heading("How to repeat this")
        page.code(f"adjointdpm sample --config {folder / 'config.yaml'} --overwrite")
        print(f"page: {page.write(folder / 'index.html').resolve()}")


def _content(sample: Tensor, suffix: str, rate: float | None) -> bytes:
    """Return the file of an image, a video or a waveform of whole levels."""
    if rate is None:
        return encoded(sample, suffix)
    return wav(sample, rate) if suffix == "wav" else film(sample, rate)


def _page(task: SampleOptions, sampler: Sampler, given: Given, number: int) -> Page:
    """Return the page of images without the images."""
    noun = NOUNS[sampler.medium]
    page = Page(f"adjointdpm sample: {noun} of prompts")
    made = f"{number} {noun if number > 1 else noun.removesuffix('s')}"
    page.verdict = (
        f"{made} of each of {len(task.prompt)} prompts."
        if len(task.prompt) > 1
        else f"{made} of “{''.join(task.prompt)}”."
    )
    if number > SHOWN or len(task.prompt) > ROWS:
        page.verdict += f" The first {SHOWN} of each of the first {ROWS} prompts are shown."
    page.facts = {"Noise": f"seed {task.seed}" if task.noise is None else str(task.noise)}
    page.facts |= facts_of(sampler, given.resolved())
    page.facts.pop("Gradient")
    return page
