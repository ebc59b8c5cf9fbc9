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
from pathlib import Path

from starlette.middleware import Middleware

from .._types import InputError
from ..files.images import output_folder
from .guard import Guard
from .jobs import Loaded, Model
from .page import CSS, blocks, theme
from .run import Studio
from .upload import MOST_BYTES

__all__ = ["serve"]


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
