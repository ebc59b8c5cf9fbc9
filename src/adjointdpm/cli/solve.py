"""`adjointdpm solve`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor

from .._types import InputError, Range
from ..files.images import image_file
from ..metrics import Measured
from ..metrics.operators import Operator, operator_of
from ..samplers.flow_sampler import FlowSampler
from ..tasks.solve.solve import SolveSettings
from ..tasks.solve.solve import solve as run_solve
from .flags import Given, PromptTexts
from .options import ModelOptions, OutputOptions, announce, announce_methods, in_one_process
from .parse_metric import image_folder
from .parse_sampler import check_memory

__all__ = ["Solve", "SolveOptions"]


@dataclass(frozen=True, kw_only=True)
class SolveOptions:
    """What was measured.

    Args:
        image: Image file that is measured, of the model's size, or the measurement itself with --measured; or a folder
            of such files, in the order of their sorted names. May be repeated.
        operator: Measurement: mask:share=0.5, box:size=5, blur:sigma=2, downsample:factor=4, gray, jpeg:quality=10 or
            phase:oversampling=2.
        prompt: What the images show; nothing if that is not known. One for all of them, or one an image, in their
            order: may be repeated, be a file of prompts (txt, csv or jsonl), or dataset:NAME for a dataset of the
            package datasets.
        noise_level: Standard deviation of the measurement's noise, above 0; pixels are between 0 and 1.
        measured: Take the images for the measurements themselves, to which no noise is added.
    """

    image: tuple[str, ...]
    operator: str
    prompt: Annotated[tuple[str, ...], PromptTexts()] = ()
    noise_level: Annotated[float, Range(0, 10, open_low=True)] = 0.02
    measured: bool = False


@dataclass(frozen=True)
class Solve:
    """The flags of `adjointdpm solve`."""

    task: SolveOptions
    model: ModelOptions
    solution: SolveSettings = SolveSettings()  # noqa: RUF009, it is frozen
    output: OutputOptions = OutputOptions(Path("outputs/solve"))

    def run(self, given: Given) -> None:
        """Reconstruct images from their measurements, and report what each solver reached.

        Raises:
            InputError: A flag contradicts another one, or cannot be used.
        """
        task, s = self.task, self.solution
        in_one_process(given.command)
        if self.model.solver == "pipeline":
            raise InputError(
                "solve needs our own steps, not the pipeline's scheduler; choose another --solver"
            )
        operator, paths = operator_of(task.operator), _paths(task.image)
        if len(task.prompt) not in (0, 1, len(paths)):
            raise InputError(
                f"--prompt: there are {len(task.prompt)} prompts, but {len(paths)} images; give one for each or one "
                "for all of them"
            )
        images = [image_file(path) for path in paths]
        # Which solvers run does not change what each of them makes.
        folder, run = self.output.start(given, free=("method",))
        sampler = self.model.sampler()
        assert isinstance(sampler, FlowSampler)  # what every other --solver makes
        check_memory(sampler, s.num_validation_images, s.num_validation_images)
        y, truth = self._measured(operator, paths, images, tuple(sampler.image_shape))
        names = [path.name for path in paths]
        found = run_solve(
            sampler,
            Measured(operator, y, task.noise_level),
            task.prompt or "",
            output=folder,
            settings=s,
            truth=truth,
            files=names if len(set(names)) == len(names) else [str(path) for path in paths],
            run=run,
        )
        if len(paths) > 1:
            announce(f"means over {len(paths)} images:")
        announce_methods(found, "reconstructions" if len(paths) > 1 else "reconstruction")

    def _measured(
        self, operator: Operator, paths: list[Path], images: list[Tensor], size: tuple[int, ...]
    ) -> tuple[Tensor, Tensor | None]:
        """Return the measurements, and the images where they are known; all with the same noise.

        Raises:
            InputError: an image does not have the model's size, or a measurement not that of the operator's output.
        """
        task = self.task
        if task.measured:
            shape = operator(torch.zeros(1, *size)).shape[1:]
            # A gray image file is read as three equal channels.
            rows = [image[:1] if shape[0] == 1 else image for image in images]
            for path, row in zip(paths, rows, strict=True):
                if row.shape != shape:
                    raise InputError(
                        f"{path}: the operator gives {tuple(shape)} of the model's images, but the measurement y is "
                        f"{tuple(row.shape)}; give a measurement of that shape, or another --operator"
                    )
            return torch.stack(rows), None
        for path, image in zip(paths, images, strict=True):
            if tuple(image.shape) != size:
                raise InputError(
                    f"{path} is {image.shape[2]} x {image.shape[1]} pixels, but the model makes {size[2]} x "
                    f"{size[1]}; crop and resize it, choose --width and --height, or give a measurement with --measured"
                )
        # One by one, as kernels round by the size of a batch.
        exact = torch.cat([operator(image[None]) for image in images])
        draw = torch.randn(exact[:1].shape, generator=torch.Generator().manual_seed(self.solution.seed))
        return exact + task.noise_level * draw, torch.stack(images)


def _paths(given: tuple[str, ...]) -> list[Path]:
    """Return the files that are given, with those in folders.

    Raises:
        InputError: a folder cannot be read, or holds no file.
    """
    paths: list[Path] = []
    for each in given:
        found = image_folder(each) if Path(each).is_dir() else [Path(each)]
        if not found:
            raise InputError(f"--image {each}: the folder holds no image; put image files into it")
        paths += found
    return paths
