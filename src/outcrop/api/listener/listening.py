"""The one port: accepted from, told apart by the first bytes, closed in order."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator
from typing import cast

from outcrop.api.claims import BACKLOG, address
from outcrop.api.listener.door import Application, Door, Limits, is_tls, keep_alive
from outcrop.api.listener.http1 import Http1
from outcrop.api.listener.http2 import PREFACE, Http2

CLOSE_S = 5.0  # for what still runs when the listener is left
_HANDSHAKE_S = 20.0
ALPN = ["h2", "http/1.1"]


class Listener:
    """An open port. *url*: where it is reached."""

    def __init__(self, url: str, door: Door) -> None:
        self.url = url
        self._door = door

    def drain(self) -> None:
        """Go on answering, but have every client open a new connection for its next request."""
        self._door.drain()


@contextlib.asynccontextmanager
async def listening(
    application: Application,
    sock: socket.socket,
    *,
    tls: ssl.SSLContext | None = None,
    limits: Limits | None = None,
) -> AsyncIterator[Listener]:
    """Serve *application* on *sock*, which listens already, until the block's end. Who came before is answered now.

    Whoever owns *tls* may load another certificate into it at any time: handshakes from then on show that one.
    """
    if tls is not None:
        tls.set_alpn_protocols(ALPN)
    keep_alive(sock)
    url = f"{'https' if tls else 'http'}://{address(sock)}"
    door = Door(application, limits or Limits())
    server = await door.loop.create_server(
        lambda: Opening(door),
        sock=sock,
        backlog=BACKLOG,
        ssl=tls,
        ssl_handshake_timeout=_HANDSHAKE_S if tls is not None else None,
    )
    try:
        yield Listener(url, door)
    finally:
        server.close()
        await door.aclose(CLOSE_S)


class Opening(asyncio.Protocol):
    """A connection whose first bytes have not come: what it speaks is decided by ALPN, else by them."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self._seen = b""
        self._transport: asyncio.Transport | None = None
        self._patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._door.unspoken.add(self._transport)
        if is_tls(transport):
            spoken = transport.get_extra_info("ssl_object").selected_alpn_protocol()
            self._become(spoken == "h2")
        else:
            self._patience = self._door.loop.call_later(self._door.limits.idle_s, self._transport.abort)

    def data_received(self, data: bytes) -> None:
        self._seen += data
        if self._seen.startswith(PREFACE):
            self._become(is_http2=True)
        elif not PREFACE.startswith(self._seen):
            self._become(is_http2=False)

    def connection_lost(self, exc: Exception | None) -> None:
        self._over()

    def _over(self) -> asyncio.Transport:
        assert self._transport is not None
        self._door.unspoken.discard(self._transport)
        if self._patience is not None:
            self._patience.cancel()
        return self._transport

    def _become(self, is_http2: bool) -> None:
        transport = self._over()
        protocol = (Http2 if is_http2 else Http1)(self._door, transport)
        transport.set_protocol(protocol)
        if self._seen:
            protocol.data_received(self._seen)
