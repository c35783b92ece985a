"""What all connections of one port share: the application, the limits, the tasks, the clock and the end."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from email.utils import formatdate
from typing import Any

import structlog

from outcrop.api.listener.exchange import Exchange, Receive, Scope, Send

log = structlog.get_logger(__name__)

Application = Callable[[Scope, Receive, Send], Awaitable[None]]
Address = tuple[str, int]

DEFECT = "The server failed on this request; its log has the details."


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one client may cost. Times in seconds; they are looked at once a ``sweep_s``.

    *head_bytes*, *headers*: of one request. *head_s*: from a request's first byte to the end of its headers.
    *idle_s*: between requests, or without one. *stall_s*: a client that takes nothing of what it is sent.
    *linger_s*: how long a client may go on sending a body that was answered before its end.
    """

    head_bytes: int = 65_536
    headers: int = 100
    pipelined: int = 32  # requests that wait on one connection for the one before; the rest must be sent again
    streams: int = 256  # requests at a time on one HTTP/2 connection
    head_s: float = 30.0
    idle_s: float = 75.0
    stall_s: float = 120.0
    linger_s: float = 2.0
    sweep_s: float = 1.0


class Door:
    """State of one listening port; owned by one event loop."""

    def __init__(self, application: Application, limits: Limits) -> None:
        self.loop = asyncio.get_running_loop()
        self.limits = limits
        self.connections: set[Connection] = set()
        self.unspoken: set[asyncio.Transport] = set()  # connections that have not said what they speak
        self.is_draining = False
        self._application = application
        self._tasks: set[asyncio.Task[None]] = set()
        self._date = (0, b"")
        self._sweep = self.loop.call_later(limits.sweep_s, self._look)

    def begin(self, exchange: Exchange) -> None:
        """Have the application answer *exchange*, in a task of its own."""
        task = self.loop.create_task(self._answer(exchange))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def date(self) -> bytes:
        """The ``date`` header's value: SDKs correct their clock by it."""
        now = int(time.time())
        if self._date[0] != now:
            self._date = (now, formatdate(now, usegmt=True).encode())
        return self._date[1]

    def drain(self) -> None:
        """From now on every answer says that its connection ends with it; connections that idle end at once."""
        self.is_draining = True
        for connection in list(self.connections):
            connection.drain()

    async def aclose(self, grace_s: float) -> None:
        """End what is left: requests get *grace_s* seconds, then they are cancelled and their connections cut."""
        self.drain()
        self._sweep.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace_s)
        for connection in list(self.connections):
            connection.cut()
        for task in self._tasks:
            task.cancel()
        for transport in self.unspoken:
            transport.abort()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0)  # the loop closes the transports

    async def _answer(self, exchange: Exchange) -> None:
        try:
            if exchange.refusal is not None:
                await exchange.refuse(*exchange.refusal)
                return
            await self._application(exchange.scope, exchange.receive, exchange.send)
        except Exception:
            log.exception("a request hit a defect outside of its handler", path=exchange.scope["raw_path"])
            if not exchange.has_begun and not exchange.is_gone:
                await exchange.refuse(500, DEFECT)
        finally:
            exchange.finish()
            exchange.scope = {}  # it leads back to the exchange; without it nothing waits for the garbage collector

    def _look(self) -> None:
        now = self.loop.time()
        for connection in list(self.connections):
            connection.look(now)
        self._sweep = self.loop.call_later(self.limits.sweep_s, self._look)


class Connection(asyncio.Protocol):
    """One client's connection, whatever it speaks. *stalled_at*: since when it takes nothing; None while it does."""

    def __init__(self, door: Door, transport: asyncio.Transport) -> None:
        self.door = door
        self.transport = transport
        self.client = _address(transport, "peername")
        self.server = _address(transport, "sockname")
        self.scheme = "https" if is_tls(transport) else "http"
        self.stalled_at: float | None = None
        self._writable: asyncio.Future[None] | None = None
        door.connections.add(self)

    def pause_writing(self) -> None:
        self.stalled_at = self.door.loop.time()
        self._writable = self.door.loop.create_future()

    def resume_writing(self) -> None:
        self.stalled_at = None
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._writable = None

    def connection_lost(self, exc: Exception | None) -> None:
        self.door.connections.discard(self)
        self.resume_writing()

    async def writable(self) -> None:
        """Return once the client has taken most of what it was sent."""
        while self._writable is not None:
            await asyncio.shield(self._writable)

    def drain(self) -> None:
        """Say that no further request is taken; end when nothing is under way."""
        raise NotImplementedError

    def look(self, now: float) -> None:
        """End what has exceeded a time of the limits. *now*: on the loop's clock."""
        if self.stalled_at is not None and now - self.stalled_at > self.door.limits.stall_s:
            self.cut()

    def cut(self) -> None:
        self.transport.abort()


def _address(transport: asyncio.Transport, name: str) -> Address:
    found: Any = transport.get_extra_info(name)
    return (found[0], found[1]) if isinstance(found, tuple) else ("", 0)


def is_tls(transport: asyncio.BaseTransport) -> bool:
    return isinstance(transport.get_extra_info("sslcontext"), ssl.SSLContext)


def keep_alive(sock: socket.socket) -> None:
    """Have the kernel find clients that vanished without a word; accepted sockets inherit it."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_KEEPIDLE"):
        for option, seconds in ((socket.TCP_KEEPIDLE, 60), (socket.TCP_KEEPINTVL, 20), (socket.TCP_KEEPCNT, 3)):
            sock.setsockopt(socket.IPPROTO_TCP, option, seconds)
