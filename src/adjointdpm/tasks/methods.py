"""Several methods towards one metric, measured on the same prompts and noise, as files and as a page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..files.html_report import Page, table_of
from ..metrics import beside, for_prompts
from .evaluation import Mean, Rate, change, recognized
from .sampling import parts

__all__ = ["Evaluation", "MethodResult", "MethodsResult", "methods_table", "verdict_of", "write_methods"]


@dataclass(frozen=True, eq=False)
class MethodResult:
    """What one method made.

    images  (images, 3, height, width), or videos or waveforms, not clamped
    values  by measure, (images,) each
    judged  how often the judge recognizes the concept in the saved images; None without a judge
    losses  of each iterate of the method's optimization; empty without one
    calls   denoiser calls for an image, forward and backward; None where they are not counted
    tries   number of images in a row that are tries of the same thing, so that intervals are over the means of these
    """

    images: Tensor
    values: dict[str, Tensor]
    judged: Rate | None
    losses: Sequence[float] = ()
    calls: int | None = None
    tries: int = 1

    @property
    def means(self) -> dict[str, float]:
        """The mean of each measure."""
        return {name: float(each.mean()) for name, each in self.values.items()}

    @property
    def intervals(self) -> dict[str, Mean]:
        """The mean of each measure with its interval."""
        return {name: Mean.of(each.view(-1, self.tries).mean(1)) for name, each in self.values.items()}

    def as_dict(self) -> dict[str, Any]:
        """Return what result.json says of it."""
        return {
            "values": {name: each.tolist() for name, each in self.values.items()},
            "means": {name: each.as_dict() for name, each in self.intervals.items()},
            "judged": self.judged and self.judged.as_dict(),
            "losses": list(self.losses),
            "calls": self.calls,
        }


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Measures the images of every method in the same way.

    Args:
        measures: metrics by name.
        prompts: one an image, for metrics that read them.
        originals: images, videos or waveforms, what paired metrics compare with.
        judge: a classifier that is in no loss; None for no judge.
        labels: (images,) the judge's label of each; None for no judge.
        batch: how many images are measured at once; all of them if None.
    """

    measures: Mapping[str, Any]
    prompts: Sequence[str]
    originals: Tensor
    judge: nn.Module | None
    labels: Tensor | None
    batch: int | None

    def __call__(
        self, images: Tensor, losses: Sequence[float] = (), calls: int | None = None
    ) -> MethodResult:
        """Return what is measured of a method's images; the rest is passed on."""
        size = self.batch or len(images)
        values = {name: self._measured(metric, images, size) for name, metric in self.measures.items()}
        return MethodResult(images, values, recognized(self.judge, images, self.labels), losses, calls)

    def _measured(self, metric: Any, images: Tensor, size: int) -> Tensor:
        """Return the metric of each image, in parts."""
        found: list[Tensor] = []
        with torch.no_grad():
            for part in parts(len(images), size):
                asked = for_prompts(metric, [self.prompts[i] for i in part])
                found.append(beside(asked, self.originals[part])(images[part]))
        return torch.cat(found)


@dataclass(frozen=True, eq=False)
class MethodsResult:
    """What several methods made; the files lie in `folder`, what was learned in `artefact`.

    methods  by name; the first is the one without any optimization
    costs    denoiser calls, bytes saved for backward, seconds
    """

    folder: Path
    artefact: Path
    methods: dict[str, MethodResult]
    costs: dict[str, Any]

    def reduction(self, measure: str, method: str = "metric") -> float:
        """Return 1 - mean after / mean before; NaN where it was 0, as content's is."""
        first, *_ = self.methods.values()
        before = first.means[measure]
        return 1 - self.methods[method].means[measure] / before if before else float("nan")

    def as_dict(self) -> dict[str, Any]:
        """Return what result.json says of it."""
        return {"methods": {k: v.as_dict() for k, v in self.methods.items()}, "costs": self.costs}


def write_methods(
    result: MethodsResult,
    page: Page,
    captions: Sequence[str],
    reference: Tensor | None = None,
    rate: float | None = None,
) -> None:
    """Put a table of all methods, their first images and their losses on a page.

    Args:
        result: what they made.
        page: is added to; the images are also saved as images.png in the result's folder, videos and sounds as files in
            its folder `samples`.
        captions: one an image.
        reference: (3, height, width), an image that the metric compares with.
        rate: frames or samples in a second, where videos or sounds were made.
    """
    methods_table(result, page)
    if reference is not None:
        page.images(table_of("reference", reference[None], ["the given image"], None))
    rows = [
        table_of(method, each.images[:8], captions[:8], rate) for method, each in result.methods.items()
    ]
    page.images(*rows, file=result.folder / ("images.png" if rate is None else "samples"))
    for method, each in result.methods.items():
        if each.losses:
            page.curve(each.losses, "step", f"loss ({method})")


def methods_table(result: MethodsResult, page: Page) -> None:
    """Put a table of all methods on a page.

    Args:
        result: what they made.
        page: is added to.
    """
    first, *_ = result.methods.values()
    counted = any(each.calls is not None for each in result.methods.values())
    page.table(
        [
            "",
            *(text for name in first.values for text in (f"{name} (mean, 95 %)", "change")),
            *(["recognized by the judge"] if first.judged is not None else []),
            *(["denoiser calls"] if counted else []),
        ],
        [
            [
                method,
                *(
                    text
                    for name, mean in each.intervals.items()
                    for text in (str(mean), _change(result, name, method))
                ),
                *([] if first.judged is None else [str(each.judged)]),
                *(["" if each.calls is None else str(each.calls)] if counted else []),
            ]
            for method, each in result.methods.items()
        ],
    )


def verdict_of(result: MethodsResult, measure: str, method: str, images: str, how: str) -> str:
    """Return in whole sentences what a method reached, beside the first one.

    Args:
        result: what several methods made.
        measure: the measure that is spoken of; lower is better.
        method: the method.
        images: the noun for the images, such as "images of prompts that were not trained on".
        how: what was done, after "is 20 % lower", such as "after the tuning".
    """
    first, made = next(iter(result.methods.values())), result.methods[method]
    noun, n = "the metric" if measure == "metric" else measure, len(made.images)
    before, after = first.means[measure], made.means[measure]
    text = (
        f"On {n} {images}, {noun} is {change(before, after)} {how} ({before:.4g} before, {after:.4g} after; lower is "
        "better)."
    )
    if made.judged is not None and first.judged is not None:
        text += (
            f" The judge, which is in no loss, recognizes {made.judged.hits} of {made.judged.of} of these images, and "
            f"{first.judged.hits} of {first.judged.of} of those before."
        )
    return text if n >= 10 else f"{text} With so few {images.split()[0]}, look at the intervals."


def _change(result: MethodsResult, measure: str, method: str) -> str:
    """Return a method's change of a measure in per cent, with its sign; nothing for the first method."""
    reduction = result.reduction(measure, method)
    if method == next(iter(result.methods)) or reduction != reduction:
        return ""
    return f"{-100 * reduction:+.0f} %"
