"""`adjointdpm solve`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch

from .._types import InputError, Range
from ..files.atomic_write import write_file
from ..files.images import image_file
from ..metrics import Measured
from ..metrics.operators import operator_of
from ..optimization.task import RunOptions
from ..samplers.flow_sampler import FlowSampler
from ..tasks.solve.solve import SolveSettings
from ..tasks.solve.solve import solve as run_solve
from .flags import Given
from .options import RESULTS, FolderOptions, ModelOptions, announce_methods, free_folder, in_one_process
from .parse_sampler import check_memory

__all__ = ["Solve", "SolveOptions"]


@dataclass(frozen=True, kw_only=True)
class SolveOptions:
    """What was measured.

    Args:
        image: Image file that is measured, of the model's size; or the measurement itself with --measured.
        operator: Measurement: mask:share=0.5, box:size=5, blur:sigma=2, downsample:factor=4, gray, jpeg:quality=10 or
            phase:oversampling=2.
        prompt: What the image shows; empty if that is not known.
        noise_level: Standard deviation of the measurement's noise, above 0; pixels are between 0 and 1.
        measured: Take the image for the measurement itself, to which no noise is added.
    """

    image: Path
    operator: str
    prompt: str = ""
    noise_level: Annotated[float, Range(0, 10, open_low=True)] = 0.02
    measured: bool = False


@dataclass(frozen=True)
class Solve:
    """The flags of `adjointdpm solve`."""

    task: SolveOptions
    model: ModelOptions
    solution: SolveSettings = SolveSettings()  # noqa: RUF009, it is frozen
    output: FolderOptions = FolderOptions(Path("outputs/solve"))

    def run(self, given: Given) -> None:
        """Reconstruct an image from its measurement, and report what each solver reached.

        Raises:
            InputError: A flag contradicts another one, or cannot be used.
        """
        task, s = self.task, self.solution
        in_one_process(given.command)
        if self.model.solver == "pipeline":
            raise InputError(
                "solve needs our own steps, not the pipeline's scheduler; choose another --solver"
            )
        operator, image = operator_of(task.operator), image_file(task.image)
        folder = free_folder(self.output.output_dir, *RESULTS, overwrite=self.output.overwrite)
        sampler = self.model.sampler()
        assert isinstance(sampler, FlowSampler)  # what every other --solver makes
        check_memory(sampler, s.num_validation_images, s.num_validation_images)
        size = tuple(sampler.image_shape)
        truth, y = None, image[None]
        if not task.measured:
            if tuple(image.shape) != size:
                raise InputError(
                    f"{task.image} is {image.shape[2]} x {image.shape[1]} pixels, but the model makes {size[2]} x "
                    f"{size[1]}; crop and resize it, choose --width and --height, or give a measurement with --measured"
                )
            truth, exact = image, operator(image[None])
            draw = torch.randn(exact.shape, generator=torch.Generator().manual_seed(s.seed))
            y = exact + task.noise_level * draw
        elif operator(torch.zeros(1, *size)).shape[1] == 1:
            y = y[:, :1]  # a gray image file is read as three equal channels
        config = folder / "config.yaml"
        write_file(config, given.as_yaml().encode())
        repeat = f"adjointdpm solve --config {config} --overwrite"
        found = run_solve(
            sampler,
            Measured(operator, y, task.noise_level),
            task.prompt,
            output=folder,
            settings=s,
            truth=truth,
            run=RunOptions(
                quiet=self.output.quiet,
                config=given.resolved(),
                repeat=repeat,
                overwrite=self.output.overwrite,
            ),
        )
        announce_methods(found, "reconstruction")
