"""What is counted: accuracies of all images, shares of those attacked, classes and rows."""

import csv
import io

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
    read = list(csv.DictReader(io.StringIO(image_result.as_csv())))
    assert [row["file"] for row in read] == [str(i) for i in range(6)]
    assert read[5]["says"] == ""
