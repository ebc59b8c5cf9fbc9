"""Reconstruct images from measurements of them, by several solvers at equal denoiser calls.

    y_k = A(x_k) + sigma n        x = sampler(noise_i, cond_k)        the solvers are those of `solvers`

Every measurement is solved by itself, from the same noises, which the seed and their number i alone decide. So what
becomes of one depends neither on the others nor on its place or name, to the bit: no batch holds two of them, as
kernels round by the size of a batch, and D-Flow counts the calls of a whole one. What a solver made of a measurement is
saved when it is done, and is not made again where a run is resumed.
"""

import hashlib
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

from ..._types import InputError, OneOf, Range, check_settings
from ...files.atomic_write import write_file
from ...files.checkpoint import save_checkpoint
from ...files.images import as_8_bit, output_folder, png
from ...metrics import Measured, PixelDistance, psnr, ssim
from ...optimization.distributed import Processes
from ...optimization.progress import progress
from ...optimization.run_folder import alone, finished_part
from ...optimization.seeds import key
from ...optimization.task import RunOptions
from ...samplers.flow_sampler import FlowSampler
from ..methods import Evaluation, MethodResult
from ..report import About, write_report
from ..sampling import needs_rgb, noise_of
from ..settings import Count
from .moment_matching import check_linearized
from .report import page_of
from .result import PLAIN, SolvedImage, SolveResult
from .solvers import METHODS, solved

__all__ = ["SolveSettings", "solve"]

_FEWEST = 20


@dataclass(frozen=True, kw_only=True)
class SolveSettings:
    """How an inverse problem is solved.

    Args:
        method: Solver: d-flow, look-ahead, dps-mean, dps, flowchef or mmps; all compares them.
        calls: Denoiser calls of each solver for an image, forward and backward; at least 20.
        num_validation_images: Number of reconstructions of each image, each from noise of its own.
        seed: Random seed.

    Raises:
        InputError: a value lies outside its range.
    """

    method: Annotated[str, OneOf(("all", *METHODS))] = "all"
    calls: Annotated[int, Range(_FEWEST)] = 200
    num_validation_images: Count = 2
    seed: Annotated[int, Range(0, 2**63 - 1)] = 0

    def __post_init__(self) -> None:
        check_settings(self)


@alone
def solve(
    sampler: FlowSampler,
    metric: Measured,
    prompts: str | Sequence[str],
    *,
    output: str | Path,
    settings: SolveSettings | None = None,
    truth: Tensor | None = None,
    files: Sequence[str] | None = None,
    run: RunOptions = RunOptions(),
) -> SolveResult:
    """Images of prompts whose measurements are given ones.

    Args:
        sampler: makes the images.
        metric: the measurements, one a row of its y, (images, ...).
        prompts: what the images show: one for all of them, or one an image; "" if that is not known.
        output: a folder for the reconstructions, result.json and the page.
        settings: how.
        truth: (images, 3, height, width), in [0, 1], the images that were measured, where they are known; for PSNR and
            SSIM.
        files: the images' names in the report; their numbers by default.
        run: whether the run is resumed, and what it reports: the metric of each image, and what each solver made.

    Returns:
        SolveResult: the images of "no measurement" and of each solver, over all measurements and for each of them.

    Raises:
        InputError: another kind of sampler or of images, measurements that the operator's output does not fit, a truth
            of another size, another number of prompts, of names or of images in it than of measurements, mmps alone
            with an operator or a decoder that has no forward-mode derivative, or a folder that cannot be written or
            that is of another run.
    """
    if not isinstance(sampler, FlowSampler):
        raise InputError(
            f"solve moves the states of its own steps, so it needs a FlowSampler, but got {type(sampler).__name__}; "
            "use FlowSampler.from_pipeline(pipe)"
        )
    needs_rgb(sampler, "solve")
    problems = _problems(sampler, metric, prompts, truth, files)
    folder, s, began = output_folder(output), settings or SolveSettings(), time.perf_counter()
    noise = noise_of(sampler, [key(s.seed, "solve", i) for i in range(s.num_validation_images)])
    chosen = _runnable(sampler, problems[0].metric, noise, s.method)
    work = _Solve(sampler, noise, s, output_folder(folder / "state"), run)
    costs: dict[str, Any] = {"budget": s.calls}
    result = SolveResult.of(folder, work.images(problems, chosen), costs)
    costs["seconds"] = time.perf_counter() - began
    if Processes.here().first:
        output_folder(result.files[0].parent)
        for path, each in zip(result.files, result.images, strict=True):
            write_file(path, png(as_8_bit(each.image)))
        page = page_of(result, metric, truth)
        about = {"prompts": [each.prompt for each in problems], **work.settings(metric)}
        several = len(problems) > 1
        closing = About(
            sampler,
            "mean of (A(x) - y)^2 / (2 sigma^2)",
            "lower is better; 0.5 is the noise of the measurement",
            "The metric of the decoded image: through every step of the sampling for d-flow, through the steps that "
            "look-ahead looks ahead, through one denoiser call for dps and dps-mean, and through none for flowchef. "
            "mmps differentiates the predicted latents and the measurement, each by itself. The moves of dps-mean "
            "after its last step go through the decoder alone. Denoiser calls are counted forward and backward, "
            "without recomputation.",
            "the reconstruction whose measurement is nearest to the given one"
            + ", of each image" * several,
            [f'image = adjointdpm.files.images.image_file("{result.files[0]}")'],
        )
        write_report("solve", result, {**about, **run.config}, page, closing, run)
    return result


@dataclass(frozen=True, eq=False)
class _Problem:
    """One measurement: its name, what the image shows, the metric of it alone, and the image, where that is known."""

    file: str
    prompt: str
    metric: Measured
    truth: Tensor | None

    def evaluation(self, plain: Tensor) -> Evaluation:
        """Return what measures the images of every method."""
        measures: dict[str, Any] = {"metric": self.metric}
        if self.truth is not None:
            truth = self.truth.to(plain)
            measures |= {
                "squared error": PixelDistance(truth),
                "PSNR": lambda images: psnr(images.clamp(0, 1), truth[None]),
                "SSIM": lambda images: ssim(images.clamp(0, 1), truth[None]),
            }
        return Evaluation(measures, [self.prompt] * len(plain), plain, None, None, None)


def _problems(
    sampler: FlowSampler,
    metric: Measured,
    prompts: str | Sequence[str],
    truth: Tensor | None,
    files: Sequence[str] | None,
) -> list[_Problem]:
    """Return the measurements, each by itself.

    Raises:
        InputError: there is none, or the measurements, the model, the prompts, the names and the truth do not fit.
    """
    n, size = len(metric.y), tuple(sampler.image_shape)
    if not n:
        raise InputError(f"the measurement y is {tuple(metric.y.shape)}, of no image; give (images, ...)")
    if truth is not None and tuple(truth.shape) != (n, *size):
        raise InputError(
            f"the images that were measured are {tuple(truth.shape)}, but with this model and {n} measurement"
            f"{'s' * (n > 1)} they must be {(n, *size)}"
        )
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    texts = texts * n if len(texts) == 1 else texts
    names = list(map(str, range(n))) if files is None else list(files)
    for what, given in {"prompts": texts, "files": names}.items():
        if len(given) != n:
            one = " or one for all of them" if what == "prompts" else ""
            raise InputError(
                f"there are {len(given)} {what}, but {n} measured images; give one for each{one}"
            )
    each = [replace(metric, y=metric.y[i : i + 1]) for i in range(n)]
    each[0].residual(torch.full((1, *size), 0.5))
    truths = [None] * n if truth is None else list(truth)
    return [_Problem(*parts) for parts in zip(names, texts, each, truths, strict=True)]


def _runnable(sampler: FlowSampler, metric: Measured, noise: Tensor, method: str) -> tuple[str, ...]:
    """Return the solvers to run: what is chosen, without mmps where of all solvers it alone cannot run.

    Raises:
        InputError: mmps alone is chosen, and cannot run.
    """
    chosen = METHODS if method == "all" else (method,)
    if "mmps" in chosen:
        try:
            check_linearized(sampler, metric, noise)
        except InputError as error:
            if method != "all":
                raise
            warnings.warn(f"mmps is left out: {error}", stacklevel=4)
            return tuple(each for each in chosen if each != "mmps")
    return chosen


@dataclass(frozen=True, eq=False)
class _Solve:
    """One run: what it is made with, and where its parts are kept."""

    sampler: FlowSampler
    noise: Tensor
    chosen: SolveSettings
    state: Path
    run: RunOptions

    def settings(self, metric: Measured) -> dict[str, Any]:
        """Return the settings of the task."""
        return {"operator": repr(metric.operator), "sigma": metric.sigma, **asdict(self.chosen)}

    def images(self, problems: Sequence[_Problem], solvers: Sequence[str]) -> list[SolvedImage]:
        """Return what the solvers made of each measurement; what an earlier run made is read before any work."""
        work = [(i, name) for i in range(len(problems)) for name in (PLAIN, *solvers)]
        configs = [self._config(each) for each in problems]
        kept = {each: finished_part(self._path(*each), configs[each[0]], self.run.resume) for each in work}
        parts = {each: found[0] for each, found in kept.items() if found is not None}
        images: list[SolvedImage] = []
        with progress("solve", len(work), self.run.quiet, len(parts)) as bar:
            for i, problem in enumerate(problems):
                made: dict[str, MethodResult] = {}
                for name in (PLAIN, *solvers):
                    if (i, name) not in parts:
                        parts[i, name] = self._made(problem, name)
                        if Processes.here().first:
                            save_checkpoint(self._path(i, name), parts[i, name], {"config": configs[i]})
                        bar.update()
                    part = parts.pop((i, name))
                    found = part["images"].to(self.noise)
                    evaluate = problem.evaluation(made[PLAIN].images if made else found)
                    made[name] = evaluate(found, part["losses"].tolist(), int(part["calls"]))
                images.append(SolvedImage(problem.file, problem.prompt, made))
                self._report(i, images[-1])
        return images

    def _made(self, problem: _Problem, name: str) -> dict[str, Tensor]:
        """Return the images that a method makes, the metric on the way, and the calls."""
        cond = self.sampler.encode([problem.prompt] * len(self.noise))
        if name == PLAIN:
            with torch.no_grad():
                images, losses = self.sampler(self.noise, cond), list[float]()
            calls = self.sampler.stats.nfe_forward
        else:
            found = solved(name, self.sampler, problem.metric, self.noise, cond, self.chosen.calls)
            images, losses, calls = found.images, found.losses, found.calls
        return {
            "images": images,
            "losses": torch.tensor(losses, dtype=torch.float64),
            "calls": torch.tensor(calls),
        }

    def _path(self, number: int, name: str) -> Path:
        return self.state / f"{number:04d}-{name.replace(' ', '-')}.safetensors"

    def _config(self, problem: _Problem) -> dict[str, Any]:
        """Return what decides the images of a measurement, whichever other solvers run."""
        y, sampler = problem.metric.y.detach().double().cpu().contiguous(), self.sampler
        settings = {**self.run.config, **self.settings(problem.metric)}
        del settings["method"]
        return settings | {
            "prompt": problem.prompt,
            "measurement": hashlib.sha256(y.numpy().tobytes()).hexdigest(),
            "num_inference_steps": sampler.steps,
            "solver": repr(sampler.solver),
            "guidance_scale": None if sampler.guidance_scale is None else float(sampler.guidance_scale),
        }

    def _report(self, number: int, image: SolvedImage) -> None:
        """Pass what was made of a measurement to whom the run reports to."""
        if self.run.report is not None:
            values = {f"metric ({name})": each.means["metric"] for name, each in image.methods.items()}
            self.run.report(number, values)
        if self.run.images is not None:
            for name, each in image.methods.items():
                self.run.images(number, name, each.images)
