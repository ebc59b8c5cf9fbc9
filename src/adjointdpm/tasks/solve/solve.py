"""Reconstruct an image from a measurement of it, by several solvers at equal denoiser calls.

    y = A(x) + sigma n        x = sampler(noise, cond)        the solvers are those of `solvers`

The page has the measurement, each reconstruction, what each would measure and what is left of it.
"""

import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

from ..._types import InputError, OneOf, Range, check_settings
from ...files.atomic_write import write_file
from ...files.html_report import ImageTable, Page
from ...files.images import as_8_bit, output_folder, png
from ...metrics import Measured, PixelDistance, psnr, ssim
from ...optimization.distributed import Processes
from ...optimization.progress import progress
from ...optimization.run_folder import alone
from ...optimization.seeds import key
from ...optimization.task import RunOptions
from ...samplers.flow_sampler import FlowSampler
from ..methods import Evaluation, MethodsResult, write_methods
from ..report import About, write_report
from ..sampling import needs_rgb, noise_of
from ..settings import Count
from .moment_matching import check_linearized
from .solvers import METHODS, solved

__all__ = ["SolveResult", "SolveSettings", "solve"]

_FEWEST = 20


@dataclass(frozen=True, kw_only=True)
class SolveSettings:
    """How an inverse problem is solved.

    Args:
        method: Solver: d-flow, look-ahead, dps-mean, dps, flowchef or mmps; all compares them.
        calls: Denoiser calls of each solver for an image, forward and backward; at least 20.
        num_validation_images: Number of reconstructions, each from noise of its own.
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


@dataclass(frozen=True, eq=False)
class SolveResult(MethodsResult):
    """What each solver made; `artefact` is the reconstruction whose measurement is nearest to the given one."""


@alone
def solve(
    sampler: FlowSampler,
    metric: Measured,
    prompt: str,
    *,
    output: str | Path,
    settings: SolveSettings | None = None,
    truth: Tensor | None = None,
    run: RunOptions = RunOptions(),
) -> SolveResult:
    """Images of a prompt whose measurement is a given one.

    Args:
        sampler: makes the images.
        metric: the measurement, of one image: y is (1, ...).
        prompt: what the image shows; "" if that is not known.
        output: a folder for the reconstructions, result.json and the page.
        settings: how.
        truth: (3, height, width), in [0, 1], the image that was measured, where it is known; for PSNR and SSIM.
        run: what is reported.

    Returns:
        SolveResult: the images of "no measurement" and of each solver.

    Raises:
        InputError: another kind of sampler or of images, a measurement of several images or one that the operator's
            output does not fit, a truth of another size, mmps alone with an operator or a decoder that has no
            forward-mode derivative, or a folder that cannot be written.
    """
    if not isinstance(sampler, FlowSampler):
        raise InputError(
            f"solve moves the states of its own steps, so it needs a FlowSampler, but got {type(sampler).__name__}; "
            "use FlowSampler.from_pipeline(pipe)"
        )
    needs_rgb(sampler, "solve")
    _check(sampler, metric, truth)
    folder, s, began = output_folder(output), settings or SolveSettings(), time.perf_counter()
    n = s.num_validation_images
    noise = noise_of(sampler, [key(s.seed, "solve", i) for i in range(n)])
    chosen = METHODS if s.method == "all" else (s.method,)
    if "mmps" in chosen:
        try:
            check_linearized(sampler, metric, noise)
        except InputError as error:
            if s.method != "all":
                raise
            warnings.warn(f"mmps is left out: {error}", stacklevel=2)
            chosen = tuple(each for each in chosen if each != "mmps")
    cond = sampler.encode([prompt] * n)
    measures: dict[str, Any] = {"metric": metric}
    if truth is not None:
        measures["squared error"] = PixelDistance(truth.to(noise))
    with torch.no_grad():
        plain = sampler(noise, cond)
    evaluate = Evaluation(measures, [prompt] * n, plain, None, None, None)
    methods = {"no measurement": evaluate(plain, calls=sampler.stats.nfe_forward)}
    with progress("solve", len(chosen), run.quiet) as bar:
        for name in chosen:
            made = solved(name, sampler, metric, noise, cond, s.calls)
            methods[name] = evaluate(made.images, made.losses, made.calls)
            bar.update()
    result = SolveResult(
        folder, folder / "solved.png", methods, {"budget": s.calls, "seconds": time.perf_counter() - began}
    )
    best = min(list(methods)[1:], key=lambda name: float(methods[name].values["metric"].min()))
    if Processes.here().first:
        chosen_image = methods[best].images[int(methods[best].values["metric"].argmin())]
        write_file(result.artefact, png(as_8_bit(chosen_image)))
        page = _page(result, metric, truth, best)
        about = {"prompt": prompt, "operator": repr(metric.operator), "sigma": metric.sigma, **asdict(s)}
        closing = About(
            sampler,
            f"measurement by {metric.operator!r} with noise of {metric.sigma:g}",
            "lower is better, 0.5 is the noise",
            "The metric through the decoder; for d-flow also through every step of the sampling, for look-ahead "
            "through the next two steps, for dps, dps-mean and mmps through one call, and for flowchef through none. "
            "Denoiser calls are counted forward and backward, without recomputation.",
            "the reconstruction whose measurement is nearest to the given one",
            [f'image = adjointdpm.files.images.image_file("{result.artefact}")'],
        )
        write_report("solve", result, {**about, **run.config}, page, closing, run)
    return result


def _check(sampler: FlowSampler, metric: Measured, truth: Tensor | None) -> None:
    """Raise before any long work if the measurement, the model and the truth do not fit.

    Raises:
        InputError: they do not.
    """
    if len(metric.y) != 1:
        raise InputError(
            f"solve reconstructs one image, but the measurement y is of {len(metric.y)}; give (1, ...)"
        )
    if truth is not None and tuple(truth.shape) != tuple(sampler.image_shape):
        raise InputError(
            f"the image that was measured is {tuple(truth.shape)}, but the model makes {tuple(sampler.image_shape)}"
        )
    metric.residual(torch.full((1, *sampler.image_shape), 0.5))


def _page(result: SolveResult, metric: Measured, truth: Tensor | None, best: str) -> Page:
    """Return the page of reconstructions."""
    page = Page("adjointdpm solve: an image from its measurement")
    made, plain = result.methods[best], result.methods["no measurement"]
    page.verdict = (
        f"The solver “{best}” comes nearest to the measurement: the metric is {made.means['metric']:.3g} "
        f"({plain.means['metric']:.3g} without it; 0.5 is the measurement's own noise)."
    )
    if truth is not None:
        rows = [
            [
                name,
                *(
                    f"{float(f(each.images.clamp(0, 1), truth[None].to(each.images)).mean()):.2f}"
                    for f in (psnr, ssim)
                ),
            ]
            for name, each in result.methods.items()
        ]
        page.verdict += f" PSNR against the image itself: {next(r[1] for r in rows if r[0] == best)} dB."
        page.table(["", "PSNR in dB", "SSIM"], rows)
    given = [("the image", truth[None])] if truth is not None else []
    shown = _shown(metric.y)
    given += [] if shown is None else [("measurement", shown)]
    if given:
        page.images(*(ImageTable(name, as_8_bit(each), [name]) for name, each in given))
    for name, each in result.methods.items():
        with torch.no_grad():
            left = _shown(metric.residual(each.images), middle=0.5)
        if left is not None:
            page.images(
                ImageTable(
                    name, as_8_bit(each.images[:8]), [f"noise {i}" for i in range(min(8, len(each.images)))]
                ),
                ImageTable(f"{name}: what is left", as_8_bit(left[:8]), ["A(x) - y"] * min(8, len(left))),
            )
    write_methods(result, page, [f"noise {i}" for i in range(len(made.images))])
    return page


def _shown(y: Tensor, middle: float = 0.0) -> Tensor | None:
    """Return a measurement as images, (batch, 3, height, width); None if it is no image."""
    if y.ndim != 4 or y.shape[1] not in (1, 3):
        return None
    return y.expand(-1, 3, -1, -1) + middle
