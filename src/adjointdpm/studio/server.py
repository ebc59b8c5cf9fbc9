"""The server of the page: on this machine by default, without requests to any other, and for its own files alone.

    ROOT                              the only folder that is served, of this server alone
    ROOT/32 random digits/1-noise     a session's first run
    ROOT/hash                         what was uploaded, until it is read

The names of sessions cannot be guessed, so that no other session has their files.
"""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from starlette.middleware import Middleware

from .._types import InputError
from ..files.images import output_folder
from .jobs import Loaded, Model
from .page import CSS, blocks, theme
from .run import Studio
from .upload import MOST_BYTES

__all__ = ["Guard", "check_host", "serve"]

_MOST_CALL = 2**16
"""The most bytes of a request that is no upload."""


def check_host(host: str, allowed: bool) -> None:
    """Refuse an address that others can reach, unless that is wanted.

    Args:
        host: a name or an address.
        allowed: whether it is wanted.

    Raises:
        InputError: others can reach it.
    """
    try:
        here = ip_address(host).is_loopback
    except ValueError:
        here = host == "localhost"
    if not here and not allowed:
        raise InputError(
            f"the host {host} can be reached by others, who could use this machine without a password; leave --host "
            "out, or give --allow_remote as well if that is wanted"
        )


class Guard:
    """Refuses requests that the page never makes: to fetch something from elsewhere, or of a large size.

    Args:
        app: the application behind it.
    """

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request, or pass it on."""
        code = _refused(scope) if scope["type"] == "http" else 0
        if not code:
            await self.app(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": code, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})


def _refused(scope: Any) -> int:
    """Return the status of a refusal; 0 if there is none."""
    path: str = scope["path"].lower()
    if "proxy=" in path or "://" in path or ":/" in path:
        return 403
    if scope["method"] in ("GET", "HEAD"):
        return 0
    length = dict(scope["headers"]).get(b"content-length", b"")
    if not length.isdigit():
        return 411
    # A form has some bytes around its file.
    most = MOST_BYTES + _MOST_CALL if path.rstrip("/").endswith("/upload") else _MOST_CALL
    return 413 if int(length) > most else 0


@contextmanager
def serve(
    model: Model, folder: Path, loaded: Loaded, *, bundled: bool, host: str, port: int | None
) -> Iterator[str]:
    """Serve the page until the block ends; runs are stopped then.

    Args:
        model: what the studio works with.
        folder: for the files of all servers; this one makes a folder of its own in it.
        loaded: the model, with which the first run begins.
        bundled: whether it is the bundled model.
        host: the address to listen at.
        port: the port; the first free one from 7860 on if None.

    Yields:
        str: the page's address.

    Raises:
        InputError: the port is taken, or the folder cannot be written.
    """
    root = output_folder(folder.resolve() / secrets.token_hex(8))
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    # gradio serves what lies in these two folders, and nothing else.
    os.environ["GRADIO_TEMP_DIR"] = os.environ["GRADIO_EXAMPLES_CACHE"] = str(root)
    studio = Studio(model, root, loaded)
    page = blocks(studio, bundled)
    try:
        _, url, _ = page.launch(
            server_name=host,
            server_port=port,
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            footer_links=[],
            max_file_size=MOST_BYTES,
            enable_monitoring=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            run_history=False,
            theme=theme(),
            css=CSS,
            app_kwargs={"middleware": [Middleware(Guard)]},
        )
    except OSError as error:
        raise InputError(
            f"the studio cannot listen at {host}, port {port or '7860 to 7959'}: {error}; give another --port"
        ) from error
    try:
        yield url
    finally:
        studio.end()
        page.close(verbose=False)
