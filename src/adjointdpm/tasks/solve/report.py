"""The page of an inverse problem: the measurements, what each solver made of them, and what is left.

Of one measurement all images are shown, with what is left of it; of several, the first ones with the image of each
solver that comes nearest, and a row of figures for every one.
"""

from dataclasses import replace

import torch
from torch import Tensor

from ...files.html_report import ImageTable, Page
from ...files.images import as_8_bit
from ...metrics import Measured
from ..methods import MethodsResult, methods_table, write_methods
from .result import PLAIN, SolveResult

__all__ = ["page_of"]

_SHOWN = 8
_LOWER = ("metric", "squared error")
"""The measures of which lower is better; those of which higher is better have a table of their own."""


def page_of(result: SolveResult, metric: Measured, truth: Tensor | None) -> Page:
    """Return the page of reconstructions.

    Args:
        result: what was made; of one measurement, images.png is written into its folder.
        metric: the measurements.
        truth: the images that were measured, or None.
    """
    several = len(result.images) > 1
    page = Page(
        f"adjointdpm solve: {'images from their measurements' if several else 'an image from its measurement'}"
    )
    page.verdict = _verdict(result)
    if truth is not None:
        _quality(page, result)
    captions = [each.file for each in result.images[:_SHOWN]]
    given = [("the image", truth[:_SHOWN])] if truth is not None else []
    shown = _shown(metric.y[:_SHOWN])
    given += [] if shown is None else [("measurement", shown)]
    if several:
        _many(page, result, given, captions)
        return page
    if given:
        page.images(*(ImageTable(name, as_8_bit(each), [name]) for name, each in given))
    _left(page, result, metric)
    write_methods(_lower(result), page, _numbered(len(result.methods[PLAIN].images)))
    return page


def _verdict(result: SolveResult) -> str:
    """Return in whole sentences what the best solver reached."""
    best, n = result.best, len(result.images)
    made, plain = result.methods[best], result.methods[PLAIN]
    reached = (
        f"the metric is {made.means['metric']:.3g} ({plain.means['metric']:.3g} without it; 0.5 is the measurement's "
        "own noise)."
    )
    if n == 1:
        text, against = (
            f"The solver “{best}” comes nearest to the measurement: {reached}",
            "the image itself",
        )
    else:
        first = sum(each.best == best for each in result.images)
        text = (
            f"On {n} images, the solver “{best}” comes nearest to the measurements in the mean: {reached} It is the "
            f"nearest one on {first} of them."
        )
        against = "the images themselves"
    return text + (
        f" PSNR against {against}: {made.means['PSNR']:.2f} dB." if "PSNR" in made.values else ""
    )


def _quality(page: Page, result: SolveResult) -> None:
    """Add the PSNR and SSIM of every method, with intervals where there are several images."""
    several = len(result.images) > 1

    def text(method: str, name: str) -> str:
        mean = result.methods[method].intervals[name]
        return f"{mean.mean:.2f}" + f" ({mean.low:.2f} to {mean.high:.2f})" * several

    head = [f"{name} (mean, 95 %)" if several else name for name in ("PSNR in dB", "SSIM")]
    page.table(["", *head], [[each, text(each, "PSNR"), text(each, "SSIM")] for each in result.methods])


def _left(page: Page, result: SolveResult, metric: Measured) -> None:
    """Add the images of every method with what is left of one measurement."""
    for name, each in result.methods.items():
        with torch.no_grad():
            left = _shown(metric.residual(each.images), middle=0.5)
        if left is not None:
            page.images(
                ImageTable(name, as_8_bit(each.images[:_SHOWN]), _numbered(len(each.images))),
                ImageTable(
                    f"{name}: what is left", as_8_bit(left[:_SHOWN]), ["A(x) - y"] * min(_SHOWN, len(left))
                ),
            )


def _lower(result: SolveResult) -> MethodsResult:
    """Return the methods with the measures of which lower is better."""
    methods = {
        name: replace(each, values={k: v for k, v in each.values.items() if k in _LOWER})
        for name, each in result.methods.items()
    }
    return MethodsResult(result.folder, result.artefact, methods, result.costs)


def _many(page: Page, result: SolveResult, given: list[tuple[str, Tensor]], captions: list[str]) -> None:
    """Add what was made of several measurements: the means, the first images, and a row for every one."""
    methods_table(_lower(result), page)
    page.text(
        "Every image starts at the same noises, and its result depends on no other image. The intervals are over the "
        "images."
    )
    n = len(result.images)
    page.heading("Images" if n <= _SHOWN else f"The first {_SHOWN} of {n} images")
    page.text("Of each solver the reconstruction is shown whose measurement is nearest to the given one.")
    rows = [ImageTable(name, as_8_bit(each), captions) for name, each in given]
    for name in result.methods:
        nearest = [each.methods[name].images[each.nearest(name)] for each in result.images[:_SHOWN]]
        rows.append(ImageTable(name, as_8_bit(torch.stack(nearest)), captions))
    page.images(*rows)
    known = "PSNR" in result.methods[PLAIN].values
    measure, digits = ("PSNR", ".2f") if known else ("metric", ".3g")
    page.heading("Every image")
    page.text(
        f"{'PSNR in dB' if known else 'The metric'} of each method, the mean over its noises; “nearest” is the solver "
        "that comes nearest to the measurement, whose image is saved."
    )
    page.table(
        ["image", "saved as", "nearest", *result.methods],
        [
            [
                each.file,
                str(path.relative_to(result.folder)),
                each.best,
                *(f"{method.means[measure]:{digits}}" for method in each.methods.values()),
            ]
            for each, path in zip(result.images, result.files, strict=True)
        ],
    )


def _numbered(number: int) -> list[str]:
    return [f"noise {i}" for i in range(min(_SHOWN, number))]


def _shown(y: Tensor, middle: float = 0.0) -> Tensor | None:
    """Return measurements as images, (batch, 3, height, width); None if they are no images."""
    if y.ndim != 4 or y.shape[1] not in (1, 3):
        return None
    return y.expand(-1, 3, -1, -1) + middle
