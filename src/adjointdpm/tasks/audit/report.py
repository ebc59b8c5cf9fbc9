"""An audit's page: rates with their intervals, curves, controls, and the worst images."""

from ...attacks.norm_ball import Ball
from ...files.html_report import ImageTable, Page
from ..evaluation import Rate
from .difference import difference_table
from .result import AttackOutcome, AuditResult

__all__ = ["page_of"]

_HEAD = ("", "misclassified", "misclassified, label preserved", "distance at most")


def page_of(result: AuditResult, ball: Ball) -> Page:
    """Return the page of an audit whose attack stayed in a ball, without its costs."""
    page = Page("adjointdpm audit: images that a classifier misclassifies")
    page.verdict = _verdict(result, ball)
    page.text(
        f"The audit began with {len(result.labels)} images that the classifier classifies correctly (of {result.tried} "
        f"made) and moved their initial noise by {_size(ball)} ({ball.norm}"
        f"{', on the Gaussian shell' if ball.shell else ''}). An image is misclassified if the "
        "classifier gives its saved 8-bit file another label, and its label is preserved if an independent judge still "
        "recognizes the object that was asked for."
    )
    if result.dropped:
        page.text("Dropped, as nothing could be misled, and in no figure below:")
        page.table(
            ("prompt", "label", "starts", "why"),
            [(each.prompt, each.label, str(each.starts), each.why) for each in result.dropped],
        )
    page.table(
        _HEAD,
        [
            _row("before", result.before),
            _row("optimized noise", result.after),
            *(_row(name, found) for name, found in result.controls.items()),
        ],
    )
    if result.controls:
        page.text(
            f"The controls saw the same objective and as many denoiser calls: "
            f"{result.costs['samplings_a_control']} samplings an image."
        )
    page.text(
        "Beside each pair stands the smallest change found: the nearest noise on the way from the start to the one "
        "that was found whose image is still misclassified, by bisection. A smaller one may exist in another direction."
    )
    for kept, heading in (
        (True, "Misclassified, label preserved"),
        (False, "Misclassified, but the label is no longer preserved"),
    ):
        if result.after.shows is None and not kept:
            continue
        _pairs(page, heading, result, result.worst(8, kept))
    page.heading("Against the size of the ball")
    page.table(
        ("radius", *_HEAD[1:]),
        [_row(f"{radius:g}", found) for radius, found in result.curve.items()],
    )
    if len(result.curve) > 1:
        lines = {"misclassified": [100 * found.success.share for found in result.curve.values()]}
        if result.after.kept is not None:
            lines["label preserved"] = [_percent(found.kept) for found in result.curve.values()]
        page.lines(list(result.curve), lines, "radius of the ball", "% of images")
    if result.transfer:
        page.heading("Transfer to other classifiers")
        page.table(
            (
                "classifier",
                "transfer rate: adversarial images that it misclassifies, among those whose original it classified "
                "correctly",
            ),
            [(name, str(Rate(*pair))) for name, pair in result.transfer.items()],
        )
    page.heading("By label")
    page.table(
        ("label", *_HEAD[1:3]),
        [(label, str(a), "" if b is None else str(b)) for label, (a, b) in result.classes.items()],
    )
    page.curve(result.losses, "step", "mean loss")
    page.link("What was found for each image, as a csv", "images.csv")
    return page


def _verdict(result: AuditResult, ball: Ball) -> str:
    """Return in whole sentences how often the classifier was misled."""
    after, n = result.after, len(result.labels)
    text = (
        f"The classifier misclassifies {after.success.hits} of {n} images whose noise moved by "
        f"{_size(ball)}"
    )
    text += (
        "."
        if after.kept is None
        else f"; in {after.kept.hits} of them a judge still recognizes the object."
    )
    if result.controls:
        others = " and ".join(f"{name} {each.success.hits}" for name, each in result.controls.items())
        text += f" At the same number of denoiser calls, without a gradient: {others} of {n}."
    return text if n >= 10 else f"{text} With so few images, look at the intervals."


def _size(ball: Ball) -> str:
    return (
        f"at most {100 * ball.radius:g} % of its norm"
        if ball.norm == "l2"
        else (f"at most {ball.radius:g} standard deviations in each number")
    )


def _row(name: str, found: AttackOutcome) -> tuple[str, ...]:
    kept = "" if found.kept is None else str(found.kept)
    return (name, str(found.success), kept, f"{float(found.distances.max()):.4f}")


def _percent(rate: Rate | None) -> float:
    return 0.0 if rate is None else 100 * rate.share


def _pairs(page: Page, heading: str, result: AuditResult, chosen: list[int]) -> None:
    page.heading(heading)
    if not chosen:
        page.text("None.")
        return
    before, after, nearest = (
        each.images[chosen] for each in (result.before, result.after, result.smallest)
    )
    page.images(
        ImageTable("before", before, [f"{result.labels[i]}" for i in chosen]),
        ImageTable(
            "after",
            after,
            [
                f"classified as {result.after.says[i]} (by {-float(result.after.margins[i]):.1f} logits)"
                for i in chosen
            ],
        ),
        difference_table(before, after),
        ImageTable(
            "smallest change found",
            nearest,
            [
                f"classified as {result.smallest.says[i]} at {float(result.smallest.distances[i]):.3g}"
                for i in chosen
            ],
        ),
        difference_table(before, nearest, "its difference, scaled"),
    )
