"""Pages in browsers as callers: the answers that CORS wants (Fetch standard, section 3.3), as AWS and OpenAI give them.

A key travels in a header that a page must set itself, never in a cookie, so that an answer for every origin gives no
page more than its own key does.
"""

from __future__ import annotations

from collections.abc import Sequence

from outcrop.api.http import Request, Response
from outcrop.api.listener.exchange import Message, Send

_METHODS = "GET, HEAD, POST, PUT, PATCH, DELETE"
_REMEMBERED_S = "86400"


class Browsers:
    """*origins*: those of pages that may call, such as ``https://chat.example``; ``*`` stands for every one."""

    def __init__(self, origins: Sequence[str]) -> None:
        self._any = "*" in origins
        self._origins = frozenset(origin.rstrip("/").lower() for origin in origins)

    def preflight(self, request: Request) -> Response | None:
        """The answer to a browser's question whether a page may ask; None for any other request."""
        headers = request.header_map()
        if request.method != "OPTIONS" or "access-control-request-method" not in headers or not self._take(request):
            return None
        # A wildcard would not cover ``authorization``, so what the page wants to send is repeated.
        wanted = headers.get("access-control-request-headers", "")
        allowed = [
            ("access-control-allow-methods", _METHODS),
            ("access-control-max-age", _REMEMBERED_S),
            *([("access-control-allow-headers", wanted)] if wanted else []),
        ]
        return Response(200, allowed)

    def sender(self, request: Request, send: Send) -> Send:
        """*send*; for a page that may call, one that says so with every answer, errors too."""
        if not self._take(request):
            return send
        origin = request.header_map()["origin"]
        allowed = [
            (b"access-control-allow-origin", b"*" if self._any else origin.encode("latin-1")),
            (b"access-control-expose-headers", b"*"),
            *([] if self._any else [(b"vary", b"origin")]),
        ]

        async def send_allowed(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *allowed]}
            await send(message)

        return send_allowed

    def _take(self, request: Request) -> bool:
        origin = request.header_map().get("origin")
        return origin is not None and (self._any or origin.lower() in self._origins)
