"""The demonstration: the tasks' own results behind one index."""

import json
import re

import pytest

from adjointdpm.cli.demo import Scale, demo
from adjointdpm.files.images import image_file
from adjointdpm.tasks import load_result


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return demo(tmp_path_factory.mktemp("demo"), Scale(sampling=3, noise=2, prompt=2, weights=2, repeats=1))


def test_the_index_links_the_page_of_every_task_and_loads_nothing_from_elsewhere(page):
    text = page.read_text()
    assert "http" not in text.replace("data:", "")
    links = re.findall(r'<a href="([^"]+)"', text)
    assert links == ["audit/index.html", "invert/index.html", "tune/index.html"]
    assert all((page.parent / each).is_file() for each in links)
    assert text.count("<h2>") == 6
    assert text.count("<td><figure>") == 20 + 8 + 6 + 12


def test_the_figures_are_those_of_the_tasks(page):
    found = {name: load_result(page.parent / name) for name in ("audit", "invert", "tune")}
    assert [each["task"] for each in found.values()] == list(found)
    text, methods = page.read_text(), found["tune"]["result"]["methods"]
    for method in ("untuned", "metric"):
        assert f"{methods[method]['means']['metric']['mean']:.4f}" in text
    assert f"{found['invert']['result']['reports']['seen noise']['after']:.3f}" in text
    rows = json.loads((page.parent / "compare.json").read_text())["rows"]
    exact = [row for row in rows if row["adjoint"] in ("Backprop()", "Checkpointed()")]
    assert all(row["relative_error"] < 1e-6 for row in exact)


def test_the_images_are_saved_beside_the_index(page):
    shapes = {
        name: tuple(image_file(page.parent / f"{name}.png").shape)
        for name in ("samples", "noise", "prompt")
    }
    assert shapes == {"samples": (3, 262, 328), "noise": (3, 130, 262), "prompt": (3, 196, 130)}
