"""The page offers what the model can do, under no public name, with nothing from elsewhere.

It is built in a process of its own, as gradio leaves event loops behind.
"""

import json
import subprocess
import sys

import pytest

from tests import ROOT

SCRIPT = """
import json
from pathlib import Path
from adjointdpm.studio.page import CSS, blocks, theme
from adjointdpm.studio.run import Studio
from tests.tiny.studios import model

pages = {
    "plain": {},
    "bare": {"labels": (), "has_features": False, "metrics": ("chroma",)},
    "clip": {"has_clip": True},
}
for name, settings in pages.items():
    pages[name] = blocks(Studio(model(**settings), Path("unused")), bundled=name != "bare").get_config_file()
print("#" + json.dumps({"pages": pages, "css": CSS, "stylesheets": theme()._stylesheets}))
"""


@pytest.fixture(scope="module")
def built():
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    lines = [line[1:] for line in done.stdout.splitlines() if line.startswith("#")]
    assert lines, done.stderr
    return json.loads(lines[0])


def component(page, name):
    (found,) = [each["props"] for each in page["components"] if each["props"].get("elem_id") == name]
    return found


def test_metrics_are_offered_where_their_networks_are_there(built):
    kinds = {
        name: [value for _, value in component(page, "metric")["choices"]]
        for name, page in built["pages"].items()
    }
    assert kinds == {
        "plain": ["colour", "label", "style"],
        "bare": ["colour", "own:0"],
        "clip": ["colour", "label", "style", "text"],
    }
    said = {name: json.dumps(page) for name, page in built["pages"].items()}
    for flag in ("--classifier", "--features", "--clip_model"):
        assert flag in said["bare"]
    assert "--clip_model" in said["plain"]
    assert "--clip_model" not in said["clip"]


def test_nothing_is_public_and_only_the_run_is_in_gradios_queue(built):
    events = built["pages"]["plain"]["dependencies"]
    assert all(each["api_visibility"] == "private" for each in events)
    queued = [each for each in events if each["queue"] and each["targets"][0][1] != "unload"]
    (run,) = queued
    assert run["types"]["generator"]


def test_nothing_is_loaded_from_elsewhere(built):
    assert built["stylesheets"] == []
    assert "http" not in built["css"]
    assert "url(" not in built["css"]
    assert built["pages"]["plain"]["analytics_enabled"] is False


def test_the_first_settings_are_ones_that_show_something(built):
    plain, bare = built["pages"]["plain"], built["pages"]["bare"]
    assert component(plain, "prompt")["value"] == "a cat"
    assert component(plain, "label")["value"] == "dog"
    assert component(plain, "steps")["value"] == 12
    assert not component(plain, "other")["visible"]
    assert "photo" in component(bare, "prompt")["value"]
