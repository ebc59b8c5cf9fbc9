"""The server gives its own files alone, fetches nothing from elsewhere, and ends when it is asked to.

It runs in a process of its own, as gradio leaves event loops behind.
"""

import json
import signal

import pytest

from adjointdpm.studio.jobs import Finished
from adjointdpm.studio.run import Studio
from adjointdpm.studio.upload import MOST_BYTES
from tests.tiny.studios import choice, get, load, model, serving


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    (folder / "outside.txt").write_text("secret")
    with serving(folder / "out", signal.SIGTERM) as url:
        (root,) = (folder / "out").iterdir()
        yield url, folder, root


def test_files_of_a_run_are_served_and_no_others(served):
    url, folder, root = served
    studio = Studio(model(), root, load())
    done = list(studio.run(studio.session(), choice(steps=1)))[-1]
    assert isinstance(done, Finished)
    code, content, headers = get(url, f"/gradio_api/file={done.artefact}")
    assert (code, content) == (200, done.artefact.read_bytes())
    code, content, headers = get(url, f"/gradio_api/file={done.page}")
    assert content == done.page.read_bytes()
    assert headers["Content-Disposition"].startswith("attachment")  # no script of it runs as the page's own
    outside = [
        folder / "outside.txt", root / ".." / ".." / "outside.txt", "/etc/passwd", "pyproject.toml",
        f"{root}/%2e%2e/%2e%2e/outside.txt", root, "../pyproject.toml", "/proc/self/environ",
    ]  # fmt: skip
    for path in outside:
        for way in ("file=", "file/"):
            code, content, _ = get(url, f"/gradio_api/{way}{path}")
            assert code in (403, 404), path
            assert b"secret" not in content
    assert get(url, "/gradio_api/file=http://127.0.0.1/a")[0] == 403


def test_the_page_sends_nothing_to_others(served):
    url, *_ = served
    code, content, _ = get(url, "/")
    assert code == 200
    for address in (b"googleapis", b"gstatic"):
        assert address not in content
    config = json.loads(get(url, "/config")[1])
    assert config["analytics_enabled"] is False


def test_a_large_upload_is_refused_before_it_is_read(served):
    url, _, root = served
    before = sorted(root.rglob("*"))
    headers = {"Content-Length": str(2 * MOST_BYTES), "Content-Type": "multipart/form-data; boundary=x"}
    assert get(url, "/gradio_api/upload", headers, method="POST")[0] == 413
    assert sorted(root.rglob("*")) == before


def test_another_site_cannot_use_the_server(served):
    url, *_ = served
    _, _, found = get(url, "/config", {"Origin": "http://evil.example"})
    assert found["Access-Control-Allow-Origin"] != "http://evil.example"
