"""HTTP/1.1 to clients, over httptools' parser: kept and half-closed connections, pipelining, and their limits.

A client that closes its half after sending still gets its answer. But a client that left altogether looks the same
(a FIN) until something is sent to it, so until the answer begins it is sent ``100 Continue`` now and then, which
HTTP has every client skip: one that left answers the first with a reset, which the second one meets, and its slot is
free. An answer that comes at once needs no such question.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

import httptools

from outcrop.api.listener.door import Connection, Door, is_tls
from outcrop.api.listener.exchange import BUFFERED_BYTES, Exchange, Message, Scope
from outcrop.api.listener.head import CONTINUE, encode_head, split_target

_PROBES_S = (0.02, 0.05, 0.25, 1.0)  # between questions; the last one again and again
_DROPPED_BYTES = 16 * 2**20  # of a body that was answered before its end


class BadHead(Exception):
    """A request that is refused by its head alone: *status*, and why."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


class Http1(Connection):
    """One connection; its requests are answered one after the other."""

    def __init__(self, door: Door, transport: asyncio.Transport) -> None:
        super().__init__(door, transport)
        self._parser: Any = httptools.HttpRequestParser(self)
        self._exchange: Http1Exchange | None = None  # that is being answered
        self._pipeline: deque[Http1Exchange] = deque()  # that wait for it
        self._incoming: Http1Exchange | None = None  # whose body comes
        self._target = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._head_bytes = 0
        self._expects_continue = False
        self._unparsed = 0  # bytes of a body that the parser leaves to us
        self._is_deaf = False  # nothing more is read: refused, answered for the last time, or at its end
        self._is_reading = True
        self._is_at_end = False
        self._dropped_bytes = 0
        self._probe: asyncio.TimerHandle | None = None
        # Until when the next thing must have happened, and whether that is the end of a head.
        self._until: float | None = door.loop.time() + door.limits.idle_s
        self._is_in_head = False

    # -- what the event loop calls --------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self._is_deaf:
            self._drop(len(data))
            return
        limits = self.door.limits
        if not self._is_in_head and self._incoming is None:
            self._begin_head()
        if self._is_in_head:
            self._head_bytes += len(data)  # too many, when a body is among them; looked at only in a head
        try:
            self._parse(data)
        except httptools.HttpParserCallbackError as exc:
            why = exc.__context__
            if not isinstance(why, BadHead):
                raise
            self._refuse(why.status, str(why))
        except httptools.HttpParserError as exc:
            if not self._is_deaf:  # else it is what follows a request that closes
                self._refuse(400, f"This is not a request in HTTP/1.1: {exc}.")
        else:
            if self._is_in_head and self._head_bytes > limits.head_bytes:
                self._refuse(431, f"The headers are larger than the limit of {limits.head_bytes} bytes.")

    def eof_received(self) -> bool:
        """Whether the connection stays open: as long as something is under way. TLS cannot be half-closed."""
        self._is_deaf = self._is_at_end = True
        if self._incoming is not None:
            self._incoming.cut()
        last = self._last()
        if last is None or last.is_old or is_tls(self.transport):
            return False
        last.is_kept = False
        self._probe = self.door.loop.call_later(_PROBES_S[0], self._ask_whether_there, 1)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_deaf = True
        if self._probe is not None:
            self._probe.cancel()
        waiting = [self._exchange, *self._pipeline]
        self._exchange = self._incoming = None
        self._pipeline.clear()
        for exchange in waiting:
            if exchange is not None:
                exchange.leave()
        self._parser = None  # which holds this connection
        super().connection_lost(exc)

    # -- what the parser calls ------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if not self._is_in_head:  # one that follows in the same read
            self._begin_head()

    def on_url(self, target: bytes) -> None:
        self._target += target

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(self._headers) >= self.door.limits.headers:
            raise BadHead(431, f"There are more than {self.door.limits.headers} headers.")
        name = name.lower()
        if name == b"expect" and value.lower() == b"100-continue":
            self._expects_continue = True
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        self._is_in_head = False
        self._until = None
        size = len(self._target) + sum(len(name) + len(value) + 4 for name, value in self._headers)
        if size > self.door.limits.head_bytes:
            raise BadHead(431, f"The headers are larger than the limit of {self.door.limits.head_bytes} bytes.")
        if self._parser.should_upgrade():
            self._unparsed = self._length_beside_an_upgrade()
        is_old = self._parser.get_http_version() == "1.0"
        exchange = Http1Exchange(self, self._scope(), is_old=is_old)
        exchange.is_kept = not is_old and self._parser.should_keep_alive() and not self.door.is_draining
        exchange.owes_continue = self._expects_continue and not is_old
        self._incoming = exchange
        if self._exchange is None:
            self._exchange = exchange
            self.door.begin(exchange)
            return
        self._pipeline.append(exchange)
        self._pause()
        if len(self._pipeline) >= self.door.limits.pipelined:
            exchange.is_kept = False

    def on_body(self, data: bytes) -> None:
        exchange = self._incoming
        if exchange is None:
            return
        if exchange.is_answered:
            self._drop(len(data))
            return
        exchange.feed(data)
        if exchange.buffered > BUFFERED_BYTES:
            self._pause()

    def on_message_complete(self) -> None:
        exchange = self._incoming
        if exchange is None or self._unparsed:
            return
        self._incoming = None
        exchange.end()
        if not exchange.is_kept:
            self._is_deaf = True  # what follows a request that closes is nobody's
        elif exchange.is_answered:
            self._until = self.door.loop.time() + self.door.limits.idle_s

    # -- what its exchanges call ----------------------------------------------------------------------

    def answered(self, exchange: Http1Exchange) -> None:
        """The answer to *exchange* is written; the next one's turn."""
        if exchange is not self._exchange:
            return
        self._exchange = None
        if not exchange.is_kept:
            self._close(lingers=not exchange.is_whole and not exchange.is_cut)
        elif self._pipeline:
            self._exchange = self._pipeline.popleft()
            self.door.begin(self._exchange)
        elif self._incoming is None:
            self._until = self.door.loop.time() + self.door.limits.idle_s
        self.resume()

    def resume(self) -> None:
        """Read on, where nothing stands against it."""
        if self._is_reading or self._is_at_end or self._pipeline or self.transport.is_closing():
            return
        if self._incoming is not None and self._incoming.buffered > BUFFERED_BYTES:
            return
        self._is_reading = True
        self.transport.resume_reading()

    # -- from the door --------------------------------------------------------------------------------

    def drain(self) -> None:
        last = self._last()
        if last is not None:
            last.is_kept = False
        elif not self._is_in_head:
            self._close(lingers=False)

    def look(self, now: float) -> None:
        super().look(now)
        if self._until is None or now < self._until:
            return
        if self._is_in_head and not self._is_deaf and self._exchange is None:
            self._refuse(408, f"The headers were not complete within {self.door.limits.head_s:g} s.")
        elif self._exchange is None:
            self.cut()

    # -- within ---------------------------------------------------------------------------------------

    def _begin_head(self) -> None:
        self._target, self._headers, self._head_bytes, self._expects_continue = b"", [], 0, False
        self._is_in_head = True
        self._until = self.door.loop.time() + self.door.limits.head_s

    def _parse(self, data: bytes) -> None:
        if self._unparsed:
            part, data = data[: self._unparsed], data[self._unparsed :]
            self._unparsed -= len(part)
            self.on_body(part)
            if not self._unparsed:
                self.on_message_complete()
        if not data or self._is_deaf:
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as exc:
            # A protocol that we do not change to: the request is answered as if it had not asked, as HTTP allows. The
            # parser ends a message that asks at its head, whatever its content-length.
            self._parse(data[exc.args[0] :])

    def _length_beside_an_upgrade(self) -> int:
        headers = dict(self._headers)
        if b"transfer-encoding" in headers:
            raise BadHead(400, "No other protocol is spoken here; send a chunked body without an upgrade header.")
        return int(headers.get(b"content-length", 0))

    def _scope(self) -> Scope:
        path, query = split_target(self._target)
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": self._parser.get_http_version(),
            "method": self._parser.get_method().decode("latin-1"),
            "scheme": self.scheme,
            "raw_path": path,
            "query_string": query,
            "headers": self._headers,
            "client": self.client,
            "server": self.server,
        }

    def _pause(self) -> None:
        if self._is_reading and not self.transport.is_closing():
            self._is_reading = False
            self.transport.pause_reading()

    def _refuse(self, status: int, why: str) -> None:
        """Answer a request that is none, once those before it are answered, and close."""
        self._is_deaf = True
        self._is_in_head = False
        broken = self._incoming
        if broken is not None:  # its head was fine, its body is not
            self._incoming = None
            broken.is_kept = False
            broken.cut()
            return
        exchange = Http1Exchange(self, self._scope_of_nothing(), is_old=False)
        exchange.is_kept = False
        exchange.is_whole = True
        exchange.refusal = (status, why)
        if self._exchange is None:
            self._exchange = exchange
            self.door.begin(exchange)
        else:
            self._pipeline.append(exchange)

    def _scope_of_nothing(self) -> Scope:
        return {"type": "refused", "method": "", "raw_path": b"", "headers": []}

    def _drop(self, size: int) -> None:
        self._dropped_bytes += size
        if self._dropped_bytes > _DROPPED_BYTES:
            self.cut()

    def _last(self) -> Http1Exchange | None:
        return self._pipeline[-1] if self._pipeline else self._exchange

    def _close(self, *, lingers: bool) -> None:
        self._is_deaf = True
        if not lingers:
            self.transport.close()
            return
        # Closing with bytes unread would reset the connection, and take the answer along.
        self._incoming = None
        self._until = self.door.loop.time() + self.door.limits.linger_s
        if self.transport.can_write_eof():
            self.transport.write_eof()

    def _ask_whether_there(self, times: int) -> None:
        exchange = self._exchange
        if exchange is None or exchange.has_begun or self.transport.is_closing():
            return
        self.transport.write(CONTINUE)
        wait_s = _PROBES_S[min(times, len(_PROBES_S) - 1)]
        self._probe = self.door.loop.call_later(wait_s, self._ask_whether_there, times + 1)


class Http1Exchange(Exchange):
    """*is_kept*: the connection outlives it. *is_old*: of HTTP/1.0, which knows neither chunks nor interim answers."""

    __slots__ = ("_connection", "_head", "_is_chunked", "_left", "is_kept", "is_old", "owes_continue")

    def __init__(self, connection: Http1, scope: Scope, *, is_old: bool) -> None:
        super().__init__(connection.door.loop, scope)
        self.is_old = is_old
        self.is_kept = True
        self.owes_continue = False
        self._connection = connection
        self._head = b""  # not written yet: it goes out with what follows it in the same turn of the loop
        self._is_chunked = False
        self._left = -1  # bytes of the answer's declared length to come; -1 where none was declared

    async def send(self, message: Message) -> None:
        connection = self._connection
        if connection.stalled_at is not None:
            await connection.writable()
        if self.is_gone or self.is_answered:
            return
        if message["type"] == "http.response.start":
            self._start(message)
            return
        body, is_last = message.get("body", b""), not message.get("more_body", False)
        if self._left >= 0:
            self._left -= len(body)
            if self._left < 0:
                raise ValueError("an answer is longer than its content-length")
        if self._is_chunked:
            body = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            body = body + b"0\r\n\r\n" if is_last else body
        if self._head:
            body, self._head = self._head + body, b""
        if body:
            connection.transport.write(body)
        if is_last:
            self.is_kept = self.is_kept and self._left <= 0
            self._done()

    def _start(self, message: Message) -> None:
        self.has_begun = True
        self.owes_continue = False
        status, headers = message["status"], message["headers"]
        length = next((value for name, value in headers if name == b"content-length"), None)
        has_body = self.scope["method"] != "HEAD" and status not in (204, 304)
        if has_body and length is not None:
            self._left = int(length)
        elif has_body:
            self._is_chunked = not self.is_old
            self.is_kept = self.is_kept and self._is_chunked
        if not self.is_whole or self._connection.door.is_draining:
            self.is_kept = False
        extra = [(b"date", self._connection.door.date())]
        if self._is_chunked:
            extra.append((b"transfer-encoding", b"chunked"))
        if not self.is_kept:
            extra.append((b"connection", b"close"))
        self._head = encode_head(status, headers, extra)
        self._loop.call_soon(self._send_head)

    def _send_head(self) -> None:
        if self._head and not self.is_gone:
            self._connection.transport.write(self._head)
            self._head = b""

    def took(self, size: int) -> None:
        self._connection.resume()

    def wants_body(self) -> None:
        if self.owes_continue:
            self.owes_continue = False
            self._connection.transport.write(CONTINUE)
        self._connection.resume()

    def finish(self) -> None:
        if self.is_answered or self.is_gone:
            return
        self._connection.cut()

    def _done(self) -> None:
        self.is_answered = True
        self._wake()
        self._connection.answered(self)
