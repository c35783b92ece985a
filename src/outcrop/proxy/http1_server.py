"""HTTP/1.1 for a proxy's callers: requests are parsed whole, answers written at once. No task, no await, no framework.

An ASGI server makes a task, two queues and five messages of every request; at a few hundred requests a second they are
most of what a hop costs, and after an idle moment, with cold caches, all of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from http import HTTPStatus
from typing import cast

import httptools
import msgspec

JSON = "application/json"
Headers = Iterable[tuple[str, str]]

_MOST_HEAD_BYTES = 65_536
_DROPPED_BYTES = 100_000_000  # of a refused body that are read, so that its sender hears the answer
_STALL_S = 60.0  # longest wait for the next bytes of a request that has begun
_KEEP_S = 75.0  # a connection at rest is closed after this
_LOOK_S = 5.0
_LAST_BYTES_S = 1.0
_MOST_WAITING = 16  # requests sent ahead on one connection
_MOST_WAITING_BYTES = 262_144  # of a body that waits: with a larger one no more is read meanwhile
_FRAMING = frozenset({"connection", "content-length", "transfer-encoding", "keep-alive", "host", "authorization"})
_OFFER = re.compile(rb"\r\nupgrade:", re.IGNORECASE)
_STATUS_LINES = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus if status >= 200
}


class Exchange:
    """One request and its answer. Header names are lower case, repeated ones joined by a comma.

    *refusal*: status and message to turn it away with, found before its body was whole, which is dropped. *on_gone* is
    called once when the caller leaves before the end of the answer, *on_room* whenever one that was slow reads again.
    """

    __slots__ = (
        "_connection",
        "_parts",
        "_size",
        "body",
        "headers",
        "is_alive",
        "is_over",
        "method",
        "on_gone",
        "on_room",
        "path",
        "query",
        "refusal",
        "request_id",
        "started",
    )

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._parts: list[bytes] = []
        self._size = 0
        self.method = ""
        self.path = ""
        self.query = ""
        self.headers: dict[str, str] = {}
        self.body = b""
        self.refusal: tuple[int, str] | None = None
        self.started = time.perf_counter()
        self.request_id = str(uuid.uuid4())
        self.is_alive = True  # whether the connection lives on after it
        self.is_over = False
        self.on_gone: Callable[[], None] | None = None
        self.on_room: Callable[[], None] | None = None

    def answer(self, status: int, headers: Headers, body: bytes) -> None:
        """The whole answer; nothing when the caller is gone."""
        if self.is_over:
            return
        head = self._head(status, headers, f"content-length: {len(body)}\r\n")
        self._connection.write(head if self.method == "HEAD" else head + body)
        self._done()

    def refuse(self, status: int, message: str, headers: Headers = ()) -> None:
        """An answer that holds *message* alone."""
        self.answer(status, [("content-type", JSON), *headers], msgspec.json.encode({"message": message}))

    def begin(self, status: int, headers: Headers) -> None:
        """The head of an answer in parts."""
        if not self.is_over:
            self._connection.write(self._head(status, headers, self._connection.framing(self)))

    def part(self, data: bytes) -> bool:
        """Send *data*; whether the caller reads fast enough for more. If not, *on_room* tells when."""
        if self.is_over or not data:
            return True
        return self._connection.write_part(data)

    def end(self) -> None:
        if not self.is_over:
            self._connection.write_end()
            self._done()

    def break_off(self) -> None:
        """End the connection without the answer's end, so that nobody takes it for a whole one."""
        if not self.is_over:
            self.is_over = True
            self._connection.break_off()

    def _head(self, status: int, headers: Headers, framing: str) -> bytes:
        lines = [f"{name}: {_one_line(value)}\r\n" for name, value in headers if name.lower() not in _FRAMING]
        if not self.is_alive or self._connection.is_closing():
            self.is_alive = False
            framing += "connection: close\r\n"
        text = f"{''.join(lines)}{framing}\r\n"
        first = _STATUS_LINES.get(status) or f"HTTP/1.1 {status} Status\r\n".encode()
        return first + text.encode("latin-1", "replace")

    def _done(self) -> None:
        self.is_over = True
        self._connection.answered(self)

    # -- what its connection calls --------------------------------------------------------------------

    def add(self, data: bytes, limit: int) -> None:
        self._size += len(data)
        if self.refusal is None and self._size > limit:
            self.refuse_body(limit)
        if self.refusal is None:
            self._parts.append(data)
        elif self._size > _DROPPED_BYTES:
            self.is_alive = False
            self._connection.give_up(self)

    def refuse_body(self, limit: int) -> None:
        self._parts.clear()
        self.refusal = (413, f"The request body is larger than the limit of {limit} bytes. Send a smaller body.")

    def is_whole(self) -> None:
        self.body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts.clear()


class Server:
    """What all connections share. *heard* is given every request once its body is there.

    *refused* may name, from the head alone, why a request is turned away (status, message): then its body is dropped.
    """

    def __init__(
        self,
        heard: Callable[[Exchange], None],
        *,
        most_body_bytes: int,
        refused: Callable[[Exchange], tuple[int, str] | None] = lambda _: None,
    ) -> None:
        self.heard = heard
        self.refused = refused
        self.most_body_bytes = most_body_bytes
        self.is_closing = False
        self.connections: set[Connection] = set()

    def connection(self) -> Connection:
        """A protocol for ``create_server``."""
        return Connection(self)

    def close(self) -> None:
        """End connections at rest now, the others with their answer."""
        self.is_closing = True
        for connection in list(self.connections):
            connection.end_if_idle()

    def abort(self) -> None:
        for connection in list(self.connections):
            connection.close()


@contextlib.asynccontextmanager
async def listening(server: Server, sock: socket.socket, backlog: int = 2048) -> AsyncIterator[None]:
    """Serve callers of *sock*, which is bound, until the end of the block; then answers have a second to be sent."""
    listener = await asyncio.get_running_loop().create_server(server.connection, sock=sock, backlog=backlog)
    try:
        yield
    finally:
        listener.close()
        server.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_BYTES_S):
                while server.connections:
                    await asyncio.sleep(0.01)
        server.abort()


class Connection(asyncio.Protocol):
    """One caller's connection: one request at a time, those that were sent ahead wait."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._reading: Exchange | None = None
        self._target = b""
        self._head_bytes = 0
        self._current: Exchange | None = None
        self._waiting: deque[Exchange] = deque()
        self._is_in_body = False
        self._is_chunked = False
        self._is_slow = False
        self._is_paused = False
        self._heard_at = 0.0
        self._timer: asyncio.TimerHandle | None = None

    # -- what the event loop calls --------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._server.connections.add(self)
        self._heard_at = time.monotonic()
        self._timer = asyncio.get_running_loop().call_later(_LOOK_S, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.discard(self)
        if self._timer is not None:
            self._timer.cancel()
        current, self._current = self._current, None
        self._waiting.clear()
        if current is not None:
            current.is_over = True
            if current.on_gone is not None:
                current.on_gone()

    def data_received(self, data: bytes) -> None:
        self._heard_at = time.monotonic()
        if not self._is_in_body:
            data = _without_offer(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserUpgrade, httptools.HttpParserError):
            self._broken()

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        self._is_slow = True

    def resume_writing(self) -> None:
        self._is_slow = False
        if self._current is not None and self._current.on_room is not None:
            self._current.on_room()

    # -- what the parser calls ------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._reading = Exchange(self)
        self._target = b""
        self._head_bytes = 0

    def on_url(self, url: bytes) -> None:
        self._target += url
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value))
        if self._reading is not None:
            headers, key = self._reading.headers, name.decode("latin-1").lower()
            text = value.decode("latin-1").strip()
            headers[key] = f"{headers[key]},{text}" if key in headers else text

    def on_headers_complete(self) -> None:
        exchange = self._reading
        if exchange is None:
            return
        self._is_in_body = True
        path, _, query = self._target.partition(b"?")
        exchange.path, exchange.query = path.decode("latin-1"), query.decode("latin-1")
        exchange.method = self._parser.get_method().decode("latin-1")
        exchange.is_alive = self._parser.should_keep_alive()
        exchange.refusal = self._server.refused(exchange)
        declared = exchange.headers.get("content-length", "0")
        limit = self._server.most_body_bytes
        if exchange.refusal is None and declared.isascii() and declared.isdigit() and int(declared[:20]) > limit:
            exchange.refuse_body(limit)
        if exchange.headers.get("expect", "").lower() == "100-continue" and self._current is None:
            if exchange.refusal is None:
                self.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                return
            # Its sender waits to hear whether the body is wanted: it hears the refusal, and need not send it.
            self._reading = None
            exchange.is_alive = False
            self._take(exchange)

    def on_body(self, data: bytes) -> None:
        if self._reading is not None:
            self._reading.add(data, self._server.most_body_bytes)

    def on_message_complete(self) -> None:
        exchange, self._reading = self._reading, None
        self._is_in_body = False
        if exchange is None:
            return
        exchange.is_whole()
        if self._current is None:
            self._take(exchange)
            return
        self._waiting.append(exchange)
        is_much = len(self._waiting) >= _MOST_WAITING or len(exchange.body) > _MOST_WAITING_BYTES
        if is_much and self._transport is not None and not self._is_paused:
            self._is_paused = True
            self._transport.pause_reading()

    def _count(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > _MOST_HEAD_BYTES and self._reading is not None:
            exchange, self._reading = self._reading, None
            exchange.is_alive = False
            self._answer_out_of_turn(exchange, 431, f"The request's head is larger than {_MOST_HEAD_BYTES} bytes.")

    # -- requests one after the other -----------------------------------------------------------------

    def _take(self, exchange: Exchange) -> None:
        self._current = exchange
        self._server.heard(exchange)

    def answered(self, exchange: Exchange) -> None:
        """The answer of the current request was written."""
        self._current = None
        self._heard_at = time.monotonic()
        if not exchange.is_alive or self._server.is_closing:
            self._finish()
            return
        if self._waiting:
            # Not from here: a row of requests that are answered at once would nest.
            asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        if self._current is None and self._waiting:
            self._take(self._waiting.popleft())
        if self._is_paused and self._transport is not None and not self._waiting:
            self._is_paused = False
            self._transport.resume_reading()

    def give_up(self, exchange: Exchange) -> None:
        """Answer a request whose body goes on for ever, and close."""
        self._reading = None
        if exchange.refusal is not None:
            self._answer_out_of_turn(exchange, *exchange.refusal)

    def _answer_out_of_turn(self, exchange: Exchange, status: int, message: str) -> None:
        if self._current is None:
            self._current = exchange
            exchange.is_alive = False
            exchange.refuse(status, message)
        else:
            self.close()

    def _broken(self) -> None:
        exchange = self._reading or Exchange(self)
        self._reading = None
        self._answer_out_of_turn(exchange, 400, "The request cannot be read as HTTP/1.1.")

    def _look(self) -> None:
        """Close a connection at rest; give up a request whose sender stalls."""
        self._timer = asyncio.get_running_loop().call_later(_LOOK_S, self._look)
        if self._current is not None:
            return
        silent_s = time.monotonic() - self._heard_at
        if self._reading is not None:
            if silent_s > _STALL_S:
                exchange, self._reading = self._reading, None
                message = f"The request stalled for {_STALL_S:g} s. Send it without pauses."
                self._answer_out_of_turn(exchange, 400, message)
        elif silent_s > _KEEP_S:
            self._finish()

    # -- bytes ----------------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def framing(self, exchange: Exchange) -> str:
        """The header line that says how parts are told apart; an old client's answer ends with its connection."""
        self._is_chunked = self._parser.get_http_version() != "1.0"
        if not self._is_chunked:
            exchange.is_alive = False
        return "transfer-encoding: chunked\r\n" if self._is_chunked else ""

    def write_part(self, data: bytes) -> bool:
        self.write(b"%x\r\n%b\r\n" % (len(data), data) if self._is_chunked else data)
        return not self._is_slow

    def write_end(self) -> None:
        if self._is_chunked:
            self.write(b"0\r\n\r\n")

    def is_closing(self) -> bool:
        return self._server.is_closing

    def end_if_idle(self) -> None:
        if self._current is None and self._reading is None:
            self._finish()

    def _finish(self) -> None:
        """Close once what was written is sent."""
        if self._transport is not None:
            self._transport.close()

    def break_off(self) -> None:
        # Without chunks only a reset tells a broken answer from a whole one.
        (self._finish if self._is_chunked else self.close)()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()


def _without_offer(data: bytes) -> bytes:
    """A request's head without an offer to change the protocol, as Java's client makes one to every plain server.

    None is taken here, and the parser would leave such a request's body out.
    """
    end = data.find(b"\r\n\r\n")
    head = data if end < 0 else data[:end]
    if b"pgrade:" not in head and b"PGRADE:" not in head:
        return data
    return _OFFER.sub(b"\r\nx-upgrade:", head) + data[len(head) :]


def _one_line(value: str) -> str:
    return value.replace("\r", " ").replace("\n", " ")
