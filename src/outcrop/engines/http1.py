"""HTTP/1.1 to engines and to a proxy's target: kept connections, whole answers and streams, nothing else.

It exists because the HTTP client was the largest part of what the gateway adds (docs/decisions/0004): it knows one
kind of peer. No redirects, compression, cookies or proxies; a peer that does not keep to the protocol is a
``ProtocolBroken``. TLS only where the owner of the client gave a context for it.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncGenerator
from functools import lru_cache
from typing import cast
from urllib.parse import urlsplit

from outcrop.engines import copy_socket

_MOST_HEAD_BYTES = 65_536
_PAUSE_BYTES = 2**20  # of a stream that nobody reads; the engine then feels it in its socket
_UNTIL_CLOSE = -1


Peer = tuple[str, int, bool]  # host, or path of a Unix socket; port, or 0; whether over TLS


class ProtocolBroken(ConnectionError):
    """The peer closed too early or spoke something else."""


class Answer:
    """One response. Read it whole or in parts, then close it; closing early closes the connection."""

    __slots__ = ("_connection", "status")

    def __init__(self, status: int, connection: _Connection) -> None:
        self.status = status
        self._connection = connection

    def headers(self) -> dict[str, str]:
        """Headers by lower-case name; of a repeated one the last. Ask before the answer is closed."""
        return self._connection.headers()

    async def read(self) -> bytes:
        """The whole body, or what is left of it."""
        return await self._connection.whole()

    async def parts(self, *, gather_s: float = 0.0, end: bytes = b"") -> AsyncGenerator[bytes, None]:
        """The body as it comes; what arrived together, or within *gather_s* seconds of the part before, is one part.

        *end* announces that the body is over: nothing waits any more.
        """
        self._connection.gather(gather_s, end)
        while part := await self._connection.part():
            yield part

    def close(self) -> None:
        """Give the connection back when the answer was read to its end, else close it."""
        self._connection.release()


@lru_cache(1024)
def _where(base_url: str) -> tuple[Peer, str, str]:
    """The peer, what its Host header says, and what paths begin with."""
    parts = urlsplit(base_url)
    if parts.scheme == copy_socket.SCHEME:
        path, prefix = copy_socket.split(base_url)
        return (path, 0, False), "localhost", prefix
    is_tls = parts.scheme == "https"
    return (parts.hostname or "127.0.0.1", parts.port or (443 if is_tls else 80), is_tls), parts.netloc, ""


class Client:
    """Connections to any number of peers, owned by one event loop. Errors are ``OSError`` and ``TimeoutError``."""

    def __init__(
        self, *, connect_timeout_s: float, read_timeout_s: float, keep_s: float, tls: ssl.SSLContext | None = None
    ) -> None:
        self._tls = tls
        self._connect_timeout_s = connect_timeout_s
        self._read_timeout_s = read_timeout_s
        self._keep_s = keep_s
        self._idle: dict[Peer, list[_Connection]] = {}
        self._all: set[_Connection] = set()

    async def request(
        self, method: str, base_url: str, path: str, *, bearer: str, body: bytes = b"", reuse: bool = True
    ) -> Answer:
        """The head of the answer to one JSON request. See ``send``."""
        head = f"Authorization: Bearer {bearer}\r\nContent-Type: application/json\r\n"
        return await self.send(method, base_url, path, head=head, body=body, reuse=reuse)

    async def send(
        self, method: str, base_url: str, path: str, *, head: str, body: bytes = b"", reuse: bool = True
    ) -> Answer:
        """The head of the answer to one request; *head* is its header lines but Host and Content-Length.

        *base_url*: scheme and host, or ``http+unix://`` with a percent-encoded path of a socket, and then what every
        path on it begins with.

        A kept connection that its peer closes before it says anything is replaced once by a fresh one: it was closing
        for idleness. With *reuse* off the connection is closed afterwards, and says so.
        """
        peer, host, prefix = _where(base_url)
        head = f"{method} {prefix}{path} HTTP/1.1\r\nHost: {host}\r\n{head}Content-Length: {len(body)}\r\n"
        data = (head + ("\r\n" if reuse else "Connection: close\r\n\r\n")).encode() + body
        connection = self._kept(peer)
        if connection is not None:
            try:
                return await connection.ask(data, is_kept=reuse)
            except ProtocolBroken:
                if connection.has_heard:
                    raise
        connection = await self._connect(peer)
        return await connection.ask(data, is_kept=reuse)

    async def aclose(self) -> None:
        for connection in list(self._all):
            connection.close()
        self._idle.clear()

    def _kept(self, peer: Peer) -> _Connection | None:
        idle = self._idle.get(peer)
        while idle:
            connection = idle.pop()
            if connection.is_open and time.monotonic() - connection.idle_since < self._keep_s:
                return connection
            connection.close()
        return None

    async def _connect(self, peer: Peer) -> _Connection:
        loop = asyncio.get_running_loop()
        host, port, is_tls = peer
        if is_tls and self._tls is None:
            raise ProtocolBroken(f"{host}:{port} wants TLS, for which this client has no context")

        def made() -> _Connection:
            return _Connection(self, peer, self._read_timeout_s, loop)

        async with asyncio.timeout(self._connect_timeout_s):
            if port:
                _, connection = await loop.create_connection(made, host, port, ssl=self._tls if is_tls else None)
            else:
                _, connection = await loop.create_unix_connection(made, host)
        self._all.add(connection)
        return connection

    def give_back(self, connection: _Connection) -> None:
        self._idle.setdefault(connection.peer, []).append(connection)

    def forget(self, connection: _Connection) -> None:
        self._all.discard(connection)
        idle = self._idle.get(connection.peer)
        if idle is not None:
            if connection in idle:
                idle.remove(connection)
            if not idle:
                del self._idle[connection.peer]


class _Connection(asyncio.Protocol):
    """One socket, one request at a time. *has_heard*: a byte of the current answer has come."""

    def __init__(self, client: Client, peer: Peer, read_timeout_s: float, loop: asyncio.AbstractEventLoop) -> None:
        self.peer = peer
        self.is_open = False
        self.has_heard = False
        self.idle_since = 0.0
        self._client = client
        self._read_timeout_s = read_timeout_s
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._gathering: asyncio.TimerHandle | None = None
        self._taken_at = 0.0
        self._heard_at = 0.0
        self._failure: Exception | None = None
        self._is_busy = False
        self._reset(is_kept=True)

    def _reset(self, *, is_kept: bool) -> None:
        self._is_kept = is_kept
        self._rest = b""  # bytes not understood yet
        self._status = 0  # 0 until the head is there
        self._lines: list[bytes] = []  # of the head, the first one left out
        self._left = 0  # bytes of the body, or of the current chunk, still to come; or _UNTIL_CLOSE
        self._is_chunked = False
        self._skip = 0  # bytes to pass over: the line end after a chunk
        self._is_in_trailer = False
        self._is_whole = False
        self._wants_all = False
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._is_paused = False
        self.has_heard = False
        self._gather_s = 0.0
        self._end = b""

    # -- what the client calls ------------------------------------------------------------------------

    async def ask(self, data: bytes, *, is_kept: bool) -> Answer:
        """Send *data*, wait for the head of the answer."""
        if self._transport is None or not self.is_open:
            raise ProtocolBroken("the connection is closed")
        self._reset(is_kept=is_kept)
        self._is_busy = True
        self._heard_at = self._loop.time()
        if self._timer is None:
            self._timer = self._loop.call_later(self._read_timeout_s, self._check_silence)
        self._transport.write(data)
        try:
            while not self._status:
                await self._wait()
        except BaseException:
            self.close()
            raise
        return Answer(self._status, self)

    def headers(self) -> dict[str, str]:
        pairs = (line.partition(b":") for line in self._lines)
        return {name.decode("latin-1").lower(): value.decode("latin-1").strip() for name, _, value in pairs}

    async def whole(self) -> bytes:
        self._wants_all = True
        while not self._is_whole:
            await self._wait()
        return self._take()

    async def part(self) -> bytes:
        """What has come of the body, at least a byte; empty at its end."""
        while not self._body and not self._is_whole:
            await self._wait()
        return self._take()

    def gather(self, gather_s: float, end: bytes) -> None:
        self._gather_s, self._end = gather_s, end

    def release(self) -> None:
        """The answer is done with."""
        self._is_busy = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.is_open and self._is_whole and self._is_kept and not self._rest:
            self._body.clear()
            self.idle_since = time.monotonic()
            self._client.give_back(self)
        else:
            self.close()

    def close(self) -> None:
        self.is_open = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._transport is not None:
            self._transport.abort()

    async def _wait(self) -> None:
        if self._failure is not None:
            raise self._failure
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None
        if self._failure is not None and not self._is_whole:
            raise self._failure

    def _take(self) -> bytes:
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._body.clear()
        self._body_bytes = 0
        self._taken_at = self._loop.time()
        if self._is_paused and self._transport is not None and self.is_open:
            self._is_paused = False
            self._transport.resume_reading()
        return body

    # -- what the event loop calls --------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.is_open = True

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        self._client.forget(self)
        if self._status and self._left == _UNTIL_CLOSE and exc is None:
            self._is_whole = True
        if not self._is_whole:
            self._failure = self._failure or ProtocolBroken(str(exc) if exc else "the peer closed the connection")
        self._wake()

    def data_received(self, data: bytes) -> None:
        if not self._is_busy or self._is_whole:
            self.close()  # nobody asked for this
            return
        self.has_heard = True
        self._heard_at = self._loop.time()
        had_head = self._status != 0
        if self._rest:
            data, self._rest = self._rest + data, b""
        try:
            if not had_head:
                data = self._read_head(data)
            if self._status and data:
                self._read_body(data)
        except ValueError as exc:
            self._failure = ProtocolBroken(f"the peer does not speak HTTP/1.1: {exc}")
            self.close()
            self._wake()
            return
        if self._body_bytes > _PAUSE_BYTES and not self._wants_all and not self._is_whole and not self._is_paused:
            assert self._transport is not None
            self._is_paused = True
            self._transport.pause_reading()
        if self._is_whole or not had_head:
            self._wake()
        elif self._body and not self._wants_all:
            more_s = self._gather_s - (self._heard_at - self._taken_at)
            if more_s <= 0 or (self._end and self._end in data):
                self._wake()
            elif self._gathering is None:
                self._gathering = self._loop.call_later(more_s, self._wake)

    def _wake(self) -> None:
        if self._gathering is not None:
            self._gathering.cancel()
            self._gathering = None
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _check_silence(self) -> None:
        """Runs once per timeout, not once per read: it looks when the last byte came, and sleeps on."""
        silent_s = self._loop.time() - self._heard_at
        if self._is_paused or silent_s < self._read_timeout_s:
            wait_s = self._read_timeout_s - (0 if self._is_paused else silent_s)
            self._timer = self._loop.call_later(max(0.01, wait_s), self._check_silence)
            return
        self._timer = None
        self._failure = TimeoutError(f"nothing came for {self._read_timeout_s:g} s")
        self.close()
        self._wake()

    # -- the protocol ---------------------------------------------------------------------------------

    def _read_head(self, data: bytes) -> bytes:
        """Take the head off *data*; what is left of it. Raises ValueError."""
        end = data.find(b"\r\n\r\n")
        if end < 0:
            if len(data) > _MOST_HEAD_BYTES:
                raise ValueError("the head is too long")
            self._rest = data
            return b""
        lines = data[:end].split(b"\r\n")
        version, _, rest = lines[0].partition(b" ")
        if not version.startswith(b"HTTP/1."):
            raise ValueError(f"its first line is {lines[0][:60]!r}")
        status = int(rest[:3])
        if status < 200:  # 100 Continue and the like; the real head follows
            return self._read_head(data[end + 4 :]) if len(data) > end + 4 else b""
        length: int | None = None
        for line in lines[1:]:
            name, _, value = line.partition(b":")
            name = name.lower()
            if name == b"content-length":
                length = int(value)
            elif name == b"transfer-encoding":
                self._is_chunked = value.strip().lower() == b"chunked"
            elif name == b"connection" and value.strip().lower() == b"close":
                self._is_kept = False
        self._status = status
        self._lines = lines[1:]
        if not self._is_chunked:
            self._left = _UNTIL_CLOSE if length is None else length
            self._is_whole = self._left == 0 or status in (204, 304)
        return data[end + 4 :]

    def _read_body(self, data: bytes) -> None:
        if self._is_chunked:
            self._read_chunks(data)
            return
        if self._left == _UNTIL_CLOSE:
            self._add(data)
            return
        if len(data) > self._left:
            raise ValueError("the body is longer than its Content-Length")
        self._left -= len(data)
        self._is_whole = self._left == 0
        self._add(data)

    def _read_chunks(self, data: bytes) -> None:
        if not (self._left or self._skip or self._is_in_trailer):
            # One read is one whole chunk nearly always: an engine writes a token, and we read it.
            end = data.find(b"\r\n")
            if end > 0 and b";" not in data[:end]:
                size = int(data[:end], 16)
                if size and len(data) == end + size + 4 and data.endswith(b"\r\n"):
                    self._add(data[end + 2 : -2])
                    return
        at = 0
        while at < len(data):
            if self._left:
                part = data[at : at + self._left]
                self._add(part)
                self._left -= len(part)
                at += len(part)
                self._skip = 0 if self._left else 2
            elif self._skip:
                taken = min(self._skip, len(data) - at)
                self._skip -= taken
                at += taken
            else:
                end = data.find(b"\r\n", at)
                if end < 0:
                    if len(data) - at > _MOST_HEAD_BYTES:
                        raise ValueError("a chunk's size line is too long")
                    self._rest = data[at:]
                    return
                line = data[at:end]
                at = end + 2
                if self._is_in_trailer:
                    if not line:
                        self._is_whole = True
                        self._rest = data[at:]
                        return
                else:
                    self._left = int(line.partition(b";")[0], 16)
                    self._is_in_trailer = self._left == 0

    def _add(self, part: bytes) -> None:
        self._body.append(part)
        self._body_bytes += len(part)
