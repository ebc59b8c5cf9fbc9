"""What is counted: accuracies of all images, shares of those attacked, classes and rows."""

import csv

import pytest
import torch

from adjointdpm.files.images import as_8_bit, read_image
from adjointdpm.tasks.evaluation import Rate
from tests.tiny.image_audits import LABELS


def test_accuracies_count_what_was_wrong_before_as_wrong_after(image_result):
    after = image_result.after
    for name in ("single", "worst", "majority"):
        hits = int((~getattr(after, name)).sum())
        assert image_result.robust[name] == Rate(hits, 6)
        assert image_result.misled(after)[name] == Rate(5 - hits, 5)
    assert image_result.robust["worst"].hits <= image_result.robust["single"].hits


def test_classes_add_up_to_the_whole(image_result):
    classes = image_result.classes
    assert set(classes) == {"red", "green", "blue"}
    assert sum(clean.hits for clean, _ in classes.values()) == image_result.clean["majority"].hits
    assert sum(robust.hits for _, robust in classes.values()) == image_result.robust["majority"].hits
    assert sum(robust.of for _, robust in classes.values()) == 6


def test_rows_are_of_the_right_images(image_result):
    rows = image_result.rows()
    assert [row["label"] for row in rows] == ["red", "green", "blue", "red", "green", "red"]
    assert rows[5]["clean_says"] == "blue"
    for row, voted in zip(rows[:5], image_result.after.voted.tolist(), strict=True):
        assert row["says"] == LABELS[voted]
        assert row["distance"] <= 8 / 255 + 1e-6
    read = list(csv.DictReader((image_result.folder / "images.csv").read_text().splitlines()))
    assert [row["file"] for row in read] == [str(i) for i in range(6)]
    assert read[5]["says"] == ""


def test_the_smallest_changes_are_successes_and_nearer(image_result):
    """Each on its saved file: as misled as what it was found from, and no further."""
    misled = image_result.after.majority.nonzero()[:, 0].tolist()
    files = sorted((image_result.folder / "smallest").glob("*.png"))
    assert [int(path.stem) for path in files] == misled
    given = image_result.images[image_result.right]
    rows = image_result.rows()
    for at, path in zip(misled, files, strict=True):
        content = as_8_bit(read_image(path.read_bytes()))
        assert torch.equal(content, image_result.smallest[at])
        moved = (content.int() - given[at].int()).abs().max()
        assert rows[at]["smallest_distance"] == pytest.approx(int(moved) / 255)
        assert rows[at]["smallest_pixel_difference"] == int(moved)
        assert 0 < rows[at]["smallest_distance"] <= rows[at]["distance"] + 1e-6
    assert rows[5]["smallest_distance"] is None
    distances = sorted(rows[at]["smallest_distance"] for at in misled)
    assert distances[0] <= image_result.median_smallest <= distances[-1]
    # The first image's channels differ by few levels and the fourth's by most: a smaller change misleads the first.
    assert rows[0]["smallest_distance"] < rows[3]["smallest_distance"]
    assert rows[0]["smallest_distance"] < rows[0]["distance"]
