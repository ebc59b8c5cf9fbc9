"""The page says what was found in whole sentences, and what a user typed is text in it."""

from tests.tiny.image_audits import audited


def test_the_page_says_what_was_found(image_result):
    text = (image_result.folder / "index.html").read_text()
    robust = image_result.robust
    assert (
        f"reads 5 of 6 images right, and {robust['majority'].hits} of them after an attack that moves each by at most "
        "8/255 in each number"
    ) in text
    assert f"With a single draw in place of the vote of 3 it is {robust['single'].hits}" in text
    assert "right, every draw" in text
    assert "Random noise at the same number of calls leaves" in text
    assert text.count("% of draws wrong") >= int(image_result.after.majority.sum())
    assert "images.csv" in text
    assert "in the median of all successes its size is" in text
    assert text.count("misclassified at ") >= int(image_result.after.majority.sum())
    assert "<b>gray" not in text


def test_a_plain_classifier_has_one_figure(tmp_path):
    audited(tmp_path, controls=False)
    text = (tmp_path / "index.html").read_text()
    assert "single draw" not in text
    assert "Random noise" not in text
