"""What stands before the page's server: requests that the page never makes are refused.

GET of an address elsewhere     403, so that the server fetches nothing for anybody
no length                       411
a length above the bound        413
"""

from typing import Any

from .upload import MOST_BYTES

__all__ = ["Guard"]

_MOST_CALL = 2**16
"""The most bytes of a request that is no upload."""


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
