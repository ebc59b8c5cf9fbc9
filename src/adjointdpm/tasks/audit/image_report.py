"""The page of an audit of given images: accuracies with their intervals, by label, and the images."""

from torch import Tensor

from ...attacks import Attack
from ...files.html_report import ImageTable, Page
from ...files.images import as_8_bit
from ..evaluation import Rate
from .difference import difference_table
from .image_result import VERDICTS, ImageAuditResult

__all__ = ["page_of_images"]


def page_of_images(
    result: ImageAuditResult, attack: Attack, gradient: str, purified: Tensor | None
) -> Page:
    """Return the page, without its costs.

    Args:
        result: what was found.
        attack: what looked for it.
        gradient: whose gradient it followed, by its name in `attacks.surrogate`.
        purified: the images that were found, after one purification each, or None without a purification.
    """
    page = Page("adjointdpm audit: images that a classifier misclassifies")
    page.verdict = _verdict(result, attack, gradient)
    page.text(
        f"Each image was moved by at most {_size(attack)} and saved with 8 bits a channel; the files were read again "
        "and classified on fresh draws that no attack has seen. What the classifier reads wrong before the attack "
        "counts as wrong after it."
    )
    if result.randomized:
        page.text(
            f"The classifier draws noise, so that one image may be read in several ways. With {len(result.after.said)} "
            "draws of each image, an image counts as right for a single draw if the first one is, for the worst draw "
            "if all are, and for the vote if most of them agree on its label."
        )
    rows = [("before the attack", result.clean), (f"after the attack, gradient {gradient}", result.robust)]
    if result.random is not None:
        rows.append(("after random noise in the same ball, at as many calls", result.left(result.random)))
    kinds = VERDICTS if result.randomized else ("majority",)
    words = {"single": "right, single draw", "worst": "right, every draw", "majority": "right, vote"}
    head = [words[kind] if result.randomized else "right" for kind in kinds]
    page.table(["", *head], [[name, *(str(rates[kind]) for kind in kinds)] for name, rates in rows])
    if result.zero_gradients:
        page.text(
            f"{100 * result.zero_gradients:.1f} % of the gradients were exactly zero, and the attack stood still: "
            "what resists it may owe this to numbers that saturate, not to robustness. Try another loss."
        )
    page.heading("By label")
    page.table(
        ("label", "right before the attack", "right after it"),
        [(name, str(a), str(b)) for name, (a, b) in result.classes.items()],
    )
    _images(page, result, attack, purified)
    if result.losses:
        page.curve(result.losses, "step", f"mean loss ({attack.loss})")
    page.link("What was found for each image, as a csv", "images.csv")
    return page


def _verdict(result: ImageAuditResult, attack: Attack, gradient: str) -> str:
    """Return in whole sentences what is left of the accuracy."""
    name = "majority"
    clean, robust = result.clean[name], result.robust[name]
    text = (
        f"The classifier reads {clean.hits} of {clean.of} images right, and {robust.hits} of them after an attack that "
        f"moves each by at most {_size(attack)}."
    )
    if result.randomized:
        text += f" With a single draw in place of the vote of {len(result.after.said)} it is {_hits(result.robust)}."
    if result.random is not None:
        text += f" Random noise at the same number of calls leaves {result.left(result.random)[name].hits}."
    if gradient != "exact":
        text += f" The attack followed a wrong gradient ({gradient}): a true one may find more."
    return text if clean.of >= 30 else f"{text} With so few images, look at the intervals."


def _hits(rates: dict[str, Rate]) -> int:
    return rates["single"].hits


def _size(attack: Attack) -> str:
    ball = attack.ball
    if ball.norm == "linf":
        return f"{255 * ball.radius:g}/255 in each number"
    return f"{ball.radius:g} in the Euclidean norm, of numbers in [0, 1]"


def _images(
    page: Page, result: ImageAuditResult, attack: Attack, purified: Tensor | None, most: int = 8
) -> None:
    """Add the images that were misled the furthest, beside what they were."""
    page.heading("Images that are misclassified by most draws")
    misled = result.after.majority.nonzero()[:, 0].tolist()
    chosen = sorted(misled, key=lambda i: float(result.after.margins[i]))[:most]
    if not chosen:
        page.text("None.")
        return
    least = result.median_smallest
    assert least is not None
    size = f"{255 * least:.1f}/255" if attack.ball.norm == "linf" else f"{least:.3g}"
    page.text(
        "The smallest change found lies on the straight way from the given image to the one that was found, by "
        "bisection, and is judged in the same way on its 8-bit file; in the median of all successes its size is "
        f"{size}. A smaller one may exist in another direction."
    )
    before, after = result.images[result.right][chosen], result.found[chosen]
    nearest = result.smallest[chosen]
    labels = result.labels[result.right][chosen]
    says = [result.names[int(result.after.voted[i])] for i in chosen]
    shares = [float(result.after.each[:, i].double().mean()) for i in chosen]
    linf = attack.ball.norm == "linf"
    sizes = [float(result.smallest_distances[i]) for i in chosen]
    rows = [
        ImageTable("given", before, [result.names[int(y)] for y in labels]),
        ImageTable(
            "found",
            after,
            [f"{s} ({100 * p:.0f} % of draws wrong)" for s, p in zip(says, shares, strict=True)],
        ),
        difference_table(before, after),
        ImageTable(
            "smallest change found",
            nearest,
            [f"misclassified at {255 * d:.0f}/255" if linf else f"misclassified at {d:.3g}" for d in sizes],
        ),
        difference_table(before, nearest, "its difference, scaled"),
    ]
    if purified is not None:
        rows.append(ImageTable("found, purified once", as_8_bit(purified[chosen]), says))
    page.images(*rows)
