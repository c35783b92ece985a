"""One request and its answer as an application sees them: ASGI's ``receive`` and ``send``, and who still listens."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

Scope = dict[str, Any]
Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

BUFFERED_BYTES = 65_536  # of a body that nobody has asked for; then its sender feels it
LEFT = "outcrop.left"  # extension of the scope: ``Exchange.when_left``
_DISCONNECT: Message = {"type": "http.disconnect"}


class Exchange:
    """The part that HTTP/1.1 and HTTP/2 share: the body on its way in, and the news that the client has left.

    *is_whole*: all of the body came. *is_cut*: it will never be whole, but the client may still listen. *is_gone*:
    nobody is left to answer, and what is sent goes nowhere. *has_begun*, *is_answered*: of the answer.
    """

    __slots__ = (
        "_body",
        "_is_told",
        "_loop",
        "_on_left",
        "_waiter",
        "buffered",
        "has_begun",
        "is_answered",
        "is_cut",
        "is_gone",
        "is_whole",
        "refusal",
        "scope",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, scope: Scope) -> None:
        self.scope = scope
        scope["extensions"] = {LEFT: self.when_left}
        self.refusal: tuple[int, str] | None = None  # status and words: the application never sees it
        self.buffered = 0
        self.is_whole = self.is_cut = self.is_gone = self.has_begun = self.is_answered = False
        self._loop = loop
        self._body: list[bytes] = []
        self._is_told = False  # the application knows that the body is whole
        self._waiter: asyncio.Future[None] | None = None
        self._on_left: Callable[[], None] | None = None

    # -- what a connection calls --------------------------------------------------------------------

    def feed(self, data: bytes) -> None:
        self._body.append(data)
        self.buffered += len(data)
        self._wake()

    def end(self) -> None:
        self.is_whole = True
        self._wake()

    def cut(self) -> None:
        self.is_cut = True
        self._wake()

    def leave(self) -> None:
        self.is_gone = True
        self._body.clear()
        if self._on_left is not None:
            self._on_left()
        self._wake()

    # -- what the application calls -----------------------------------------------------------------

    def when_left(self, call: Callable[[], None] | None) -> None:
        """Have *call* called as soon as the client is gone, also when it is already; None: nobody asks any more."""
        self._on_left = call
        if call is not None and self.is_gone:
            self._loop.call_soon(lambda: call() if self._on_left is call else None)

    async def receive(self) -> Message:
        """ASGI's. ``http.disconnect`` also when the client ended before its body; it may still hear an answer."""
        while not self.is_gone:
            if self._body or (self.is_whole and not self._is_told):
                body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
                self._body.clear()
                size, self.buffered = self.buffered, 0
                self._is_told = self.is_whole
                self.took(size)
                return {"type": "http.request", "body": body, "more_body": not self.is_whole}
            if self.is_cut or self.is_answered:
                break
            self.wants_body()
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return _DISCONNECT

    async def send(self, message: Message) -> None:
        """ASGI's. Waits while the client takes nothing; nothing happens once it is gone."""
        raise NotImplementedError

    async def refuse(self, status: int, why: str) -> None:
        """Answer instead of the application, in words that clients of AWS and of OpenAI both find."""
        body = msgspec.json.encode({"message": why, "error": {"message": why, "type": "invalid_request_error"}})
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await self.send({"type": "http.response.start", "status": status, "headers": headers})
        await self.send({"type": "http.response.body", "body": body})

    # -- what the two protocols do each in their way ---------------------------------------------------

    def took(self, size: int) -> None:
        """*size* bytes of the body were taken out of the buffer: more may come."""
        raise NotImplementedError

    def wants_body(self) -> None:
        """The application waits for the body; a client that waits for leave to send it gets it."""

    def finish(self) -> None:
        """The application is done; an answer that is not whole by now never will be."""
        raise NotImplementedError

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
