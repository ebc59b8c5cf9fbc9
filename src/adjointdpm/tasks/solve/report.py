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
from ..methods import MethodsResult, write_methods
from .result import PLAIN, SolveResult

__all__ = ["page_of"]

_SHOWN = 8
_TABLE = ("metric", "squared error")
"""The measures of which lower is better, which the table of methods has."""


def page_of(result: SolveResult, metric: Measured, truth: Tensor | None) -> Page:
    """Return the page of reconstructions.

    Args:
        result: what was made; images.png is written into its folder.
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
    if several:
        page.text(
            "Every image starts at the same noises, and its result depends on no other image. The intervals are over "
            "the images."
        )
        page.heading(
            f"The first {_SHOWN} of {len(result.images)} images"
            if len(result.images) > _SHOWN
            else "Images"
        )
        page.text(
            "Of each solver the reconstruction is shown whose measurement is nearest to the given one."
        )
    names = [each.file for each in result.images[:_SHOWN]]
    given = [("the image", truth)] if truth is not None else []
    shown = _shown(metric.y[:_SHOWN])
    given += [] if shown is None else [("measurement", shown)]
    if given:
        page.images(
            *(
                ImageTable(name, as_8_bit(each[:_SHOWN]), names if several else [name])
                for name, each in given
            )
        )
    if not several:
        _left(page, result, metric)
    write_methods(
        _shortened(result), page, names if several else _numbered(len(result.methods[PLAIN].images))
    )
    if several:
        _rows(page, result)
    return page


def _verdict(result: SolveResult) -> str:
    """Return in whole sentences what the best solver reached."""
    best, several = result.best, len(result.images) > 1
    made, plain = result.methods[best], result.methods[PLAIN]
    text = (
        f"The solver “{best}” comes nearest to the measurement{'s' * several}: the metric is "
        f"{made.means['metric']:.3g}{' in the mean' * several} ({plain.means['metric']:.3g} without it; 0.5 is the "
        "measurement's own noise)."
    )
    if several:
        first = sum(each.best == best for each in result.images)
        text = f"Of {len(result.images)} images: {text} It is the nearest one in {first} of them."
    if "PSNR" in made.values:
        against = "the images themselves" if several else "the image itself"
        text += f" PSNR against {against}: {made.means['PSNR']:.2f} dB."
    return text


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


def _shortened(result: SolveResult) -> MethodsResult:
    """Return the methods with the measures of a table, and of several measurements one image each."""
    methods = {}
    for name, each in result.methods.items():
        images = each.images
        if len(result.images) > 1:
            mine = (image.methods[name].images[image.nearest(name)] for image in result.images[:_SHOWN])
            images = torch.stack(list(mine))
        values = {measure: each.values[measure] for measure in _TABLE if measure in each.values}
        methods[name] = replace(each, images=images, values=values)
    return MethodsResult(result.folder, result.artefact, methods, result.costs)


def _rows(page: Page, result: SolveResult) -> None:
    """Add a row for every image: the PSNR of each method, or its metric where the images are not known."""
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
