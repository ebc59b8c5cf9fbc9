"""The site and the tasks' pages in a real browser: no dead links, no errors, readable colors, no sideways scrolling."""

import pytest

from tests import ROOT
from tests.tiny import browser
from tests.tiny.commands import SMALL, run

SITE = ROOT / "site"
SOURCES = [ROOT / "mkdocs.yml", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.*")]


def test_nothing_is_wrong_with_the_site():
    browser.chromium()
    if not (SITE / "index.html").is_file():
        pytest.skip("there is no site/: run make docs")
    if (SITE / "index.html").stat().st_mtime < max(path.stat().st_mtime for path in SOURCES):
        pytest.skip("site/ is older than docs/: run make docs")
    assert browser.problems(SITE) == []


def test_nothing_is_wrong_with_the_pages_of_tasks(tmp_path):
    browser.chromium()
    few = ["--num_inference_steps", "2", "--output_dir"]
    ended = run(
        ["sample", "--prompt", "a cat", "--batch", "2", *few, str(tmp_path / "sample")],
        ["compare", "--prompt", "a cat", "--repeats", "1", "--no_check", *few, str(tmp_path / "compare")],
        [
            "guide",
            *SMALL,
            "--metric",
            "chroma",
            "--prompt",
            "a cat",
            "--output_dir",
            str(tmp_path / "guide"),
        ],
    )
    assert ended == ["done"] * 3
    pages = [f"{name}/index.html" for name in ("compare", "guide", "sample")]
    assert browser.problems(tmp_path, pages) == []


WRONG = """<!doctype html><html lang="en"><meta name="viewport" content="width=device-width"><title>wrong</title>
<link rel="icon" href="data:,"><p id="here" style="color: #999; background: #fff">pale</p>
<p style="color: #000; background: #fff">dark <a href="#there">nowhere</a> <a href="#here">somewhere</a>
<a href="gone.html">nothing</a></p><img src="data:image/gif;base64,R0lGODlhAQABAAAAACw="><img src="no.png" alt="no">
<div style="width: 1500px; height: 9px"></div><script>undefined.x</script>"""


def test_what_is_wrong_is_found(tmp_path):
    browser.chromium()
    (tmp_path / "index.html").write_text(WRONG)
    found = "\n".join(browser.problems(tmp_path))
    for each in (
        "(400 px, dark): contrast 2.85: P. pale",
        "(1200 px, light): contrast 2.85: P. pale",
        "image without alt: data:image/gif",
        "broken image: http",
        "404 http",
        "error: Cannot read properties of undefined",
        "(1200 px, light): 15",
        "dead link /index.html#there",
        "dead link /gone.html",
    ):
        assert each in found, f"{each}\n{found}"
    assert "dark " not in found.replace("(400 px, dark)", "")
    assert "dead link /index.html#here" not in found
