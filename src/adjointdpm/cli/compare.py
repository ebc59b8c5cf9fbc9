"""`adjointdpm compare`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from .._types import Range
from ..analysis.comparison import compare as compare_gradients
from ..files.atomic_write import write_file
from ..metrics import Chroma
from .flags import Given, Positional
from .options import BundledOptions, FolderOptions, free_folder, in_one_process
from .parse_sampler import check_memory

__all__ = ["Compare", "CompareOptions"]


@dataclass(frozen=True)
class CompareOptions:
    """What is compared.

    Args:
        prompt: Prompt of the bundled model.
        repeats: Number of timed rounds.
        weights: Also differentiate the weights.
    """

    prompt: Annotated[str, Positional]
    repeats: Annotated[int, Range(1, 1000)] = 3
    weights: bool = False


@dataclass(frozen=True)
class Compare:
    """The flags of `adjointdpm compare`."""

    task: CompareOptions
    model: BundledOptions
    output: FolderOptions = FolderOptions(Path("outputs/compare"))

    def run(self, given: Given) -> None:
        """Measure, print the table, and write the files."""
        in_one_process(given.command)
        folder = free_folder(self.output.output_dir, "compare.json", overwrite=self.output.overwrite)
        sampler = self.model.sampler()
        check_memory(sampler, 1, 1)
        sampler.requires_grad_(False)
        sampler.model.denoiser.requires_grad_(self.task.weights)
        cond, noise = sampler.encode(self.task.prompt), sampler.noise(1, self.model.seed)
        found = compare_gradients(sampler, Chroma(), noise=noise, cond=cond, repeats=self.task.repeats)
        print(found)
        write_file(folder / "compare.json", found.to_json().encode())
        print(found.plot(folder / "compare.png"))
