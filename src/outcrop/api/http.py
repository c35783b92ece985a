"""Requests and responses over ASGI, thin: the raw path is kept, bodies are bounded, a client that left is noticed."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from outcrop.access.authenticate import merge
from outcrop.access.identities import Principal
from outcrop.access.quotas import Ticket
from outcrop.api.listener.exchange import LEFT, Message, Receive, Scope, Send
from outcrop.errors import BodyTooLarge, MalformedBody, ServiceError
from outcrop.telemetry.requests import RequestFacts

Headers = list[tuple[str, str]]

_DISCARD_BYTES = 100_000_000  # read and drop this much of a refused body, so that the client hears the answer
_STALL_S = 60  # longest wait for the next part of a body


@dataclass(slots=True)
class Called:
    """Which operation of which service (as CloudTrail names it) a request is; *answer*: what it was told, if a dict."""

    source: str
    name: str
    params: Mapping[str, Any]
    answer: Mapping[str, Any] | None = None


class Request:
    """One HTTP request. Header names are lower case; *raw_path* is as it came over the wire."""

    __slots__ = (
        "_headers",
        "_receive",
        "_when_left",
        "called",
        "error",
        "facts",
        "headers",
        "is_audited",
        "is_change",
        "is_copy",
        "is_secure",
        "method",
        "migrated",
        "notes",
        "principal",
        "query",
        "raw_path",
        "request_id",
        "signed_for",
        "source_ip",
        "started",
        "ticket",
    )

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self.method: str = scope["method"]
        self.raw_path: bytes = scope["raw_path"].partition(b"?")[0]
        self.query: bytes = scope["query_string"]
        self.headers: list[tuple[bytes, bytes]] = scope["headers"]
        self.ticket: Ticket | None = None  # of a request that quotas count
        self.signed_for = ""  # the service in the scope of its signature
        self.is_secure: bool = scope.get("scheme") == "https"
        self.request_id = str(uuid.uuid4())
        self.started = time.perf_counter()
        self.notes: list[tuple[str, str]] = []  # headers that its answer gets, whatever the answer is
        self.facts: RequestFacts | None = None  # of a request for inference
        self.source_ip: str = (scope.get("client") or ("", 0))[0]
        self.principal: Principal | None = None  # once it was verified
        self.called: Called | None = None
        self.is_audited = False
        self.is_change = False  # what it changes is changed to its end, whether its caller still listens or not
        self.is_copy = False  # nobody asked for it: it compares two sides of a migration, and no quota counts it
        self.migrated: Mapping[str, str] = {}  # which migration it is of, and which side answers
        self.error: ServiceError | None = None  # what it is answered instead of what it asks for
        self._receive = receive
        self._when_left: Callable[[Callable[[], None] | None], None] = scope["extensions"][LEFT]
        self._headers: dict[str, str] | None = None

    def header_map(self) -> dict[str, str]:
        """Headers by lower-case name; repeated ones joined by a comma."""
        if self._headers is None:
            self._headers = merge(self.headers)
        return self._headers

    async def body(self, limit: int) -> bytes:
        """The whole body.

        Raises BodyTooLarge over *limit* bytes, MalformedBody when it stalls, ClientGone when the client leaves first.
        """
        declared = self.header_map().get("content-length", "0")
        too_large = declared.isascii() and declared.isdigit() and int(declared[:20]) > limit
        parts: list[bytes] = []
        size = 0
        async for part in self._parts():
            size += len(part)
            too_large = too_large or size > limit
            if too_large:
                parts.clear()
            else:
                parts.append(part)
        if too_large:
            raise BodyTooLarge(f"The request body is larger than the limit of {limit} bytes. Send a smaller body.")
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def refuse_encoded(self) -> None:
        """Raises MalformedBody for a body that is compressed."""
        coding = self.header_map().get("content-encoding", "identity")
        if coding.lower() not in ("", "identity"):
            raise MalformedBody(f"Content-Encoding '{coding[:40]}' is not supported. Send the body uncompressed.")

    async def discard(self) -> None:
        """Read and drop the body of a request that is refused before it, so that the client hears the answer."""
        async for _ in self._parts():
            pass

    async def _parts(self) -> AsyncGenerator[bytes, None]:
        """The body as it comes, up to what is worth dropping of one that is refused."""
        size = 0
        more = True
        while more and size <= _DISCARD_BYTES:
            try:
                async with asyncio.timeout(_STALL_S):
                    message = await self._receive()
            except TimeoutError:
                raise MalformedBody(f"The request body stalled for {_STALL_S} s. Send it without pauses.") from None
            if message["type"] == "http.disconnect":
                raise ClientGone
            part = message.get("body", b"")
            size += len(part)
            yield part
            more = message.get("more_body", False)

    def sender(self, send: Send) -> Send:
        """*send*; for HEAD, one that leaves the body of the answer out."""
        if self.method != "HEAD":
            return send

        async def send_headers(message: Message) -> None:
            await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

        return send_headers

    def when_left(self, call: Callable[[], None] | None) -> None:
        """Have *call* called as soon as the client has left, however; None: not any more."""
        self._when_left(call)


class ClientGone(Exception):
    """The client hung up; nobody is left to answer."""


@dataclass(slots=True)
class Response:
    status: int
    headers: Headers
    body: bytes = b""


@dataclass(slots=True)
class Stream:
    """A response whose *parts* are sent as they come; the iterator is closed when the client leaves."""

    status: int
    headers: Headers
    parts: AsyncGenerator[bytes, None] = field(repr=False)


async def respond(response: Response | Stream, request_id: str, send: Send) -> None:
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in response.headers]
    headers.append((b"x-amzn-requestid", request_id.encode()))
    if isinstance(response, Response):
        headers.append((b"content-length", str(len(response.body)).encode()))
        await send({"type": "http.response.start", "status": response.status, "headers": headers})
        await send({"type": "http.response.body", "body": response.body})
        return
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    async with aclosing(response.parts) as parts:
        async for part in parts:
            await send({"type": "http.response.body", "body": part, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def while_connected(request: Request, work: Awaitable[None]) -> None:
    """Run *work* in the task of its caller; cancel it as soon as the client hangs up. Raises ClientGone then.

    A change that has begun is not cancelled: half of it would stay, in the registry and not in memory, say.
    """
    task = asyncio.current_task()
    assert task is not None
    has_left = False

    def left() -> None:
        nonlocal has_left
        if not has_left and not request.is_change:
            has_left = True
            task.cancel()

    request.when_left(left)
    try:
        await work
    except asyncio.CancelledError:
        if has_left and task.uncancel() == 0:
            raise ClientGone from None
        raise
    finally:
        request.when_left(None)
