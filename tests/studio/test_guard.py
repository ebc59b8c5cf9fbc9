"""Requests to fetch from elsewhere, and large ones, are refused; those that the page makes are passed on."""

import asyncio

from adjointdpm.studio.guard import Guard
from adjointdpm.studio.upload import MOST_BYTES


def answer(method, path, **headers):
    """The status that Guard answers; None if the request was passed on."""
    passed, sent = [], []

    async def app(scope, receive, send):
        passed.append(scope)

    async def send(message):
        sent.append(message)

    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": method, "path": path, "headers": raw}
    asyncio.run(Guard(app)(scope, None, send))
    assert bool(passed) != bool(sent)
    return None if passed else sent[0]["status"]


def test_requests_that_the_page_never_makes_are_refused():
    assert answer("GET", "/") is None
    assert answer("GET", "/gradio_api/file=/tmp/a/noise.safetensors") is None
    assert answer("GET", "/gradio_api/file=http://example.org/a") == 403
    assert answer("GET", "/gradio_api/file=HTTPS:/example.org/a") == 403
    assert answer("GET", "/gradio_api/proxy=https%3A") == 403
    assert answer("POST", "/gradio_api/queue/join", content_length="200") is None
    assert answer("POST", "/gradio_api/queue/join", content_length="70000") == 413
    assert answer("POST", "/gradio_api/queue/join") == 411
    assert answer("POST", "/gradio_api/upload", content_length=str(MOST_BYTES)) is None
    assert answer("POST", "/gradio_api/upload", content_length=str(2 * MOST_BYTES)) == 413
