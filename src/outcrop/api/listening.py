"""HTTP/1.1 and HTTP/2 on one socket: Granian, inside this event loop, in front of the gateway."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator
from typing import Any

from granian.constants import Interfaces
from granian.http import HTTP2Settings
from granian.net import SocketHolder  # type: ignore[attr-defined]  # not in its __all__
from granian.server.embed import Server

from outcrop.access.certificates import ensure_certificate
from outcrop.api.claims import BACKLOG, address
from outcrop.api.routes import Gateway
from outcrop.errors import BadSetting
from outcrop.settings import Settings

MAX_HEADERS_BYTES = 65536  # of one HTTP/2 request; HTTP/1.1 takes at most 100 headers
START_S = 10.0
STOP_S = 5.0


class _OnSocket(Server):
    """Granian on a socket that is open already. It has no public way to be given one (2.8)."""

    def __init__(self, gateway: Gateway, listener: socket.socket, **options: Any) -> None:
        host, port = listener.getsockname()[:2]
        super().__init__(gateway, address=host, port=port, **options)
        self._listener = listener

    def _init_shared_socket(self) -> None:
        holder: Any = SocketHolder  # its stub knows no arguments
        self._shd: Any = holder(os.dup(self._listener.fileno()), False, BACKLOG)


@contextlib.asynccontextmanager
async def listening(gateway: Gateway, settings: Settings, listener: socket.socket) -> AsyncIterator[str]:
    """Serve *gateway* on *listener* until the end of the block; yields the URL. Who came before is answered now."""
    tls: dict[str, Any] = {}
    if settings.tls:
        certificate = ensure_certificate(settings.home / "tls", hosts=[settings.host, "localhost", "127.0.0.1"])
        tls = {"ssl_cert": certificate.certificate, "ssl_key": certificate.key}
    listener.setblocking(False)
    server = _OnSocket(
        gateway,
        listener,
        interface=Interfaces.ASGINL,
        websockets=False,
        backlog=BACKLOG,
        log_enabled=False,
        http2_settings=HTTP2Settings(max_headers_size=MAX_HEADERS_BYTES),
        **tls,
    )
    begun = asyncio.Event()
    server.on_startup(begun.set)
    task = asyncio.create_task(server.serve(), name="http")
    try:
        await _begun(begun, task, address(listener))
        yield f"{'https' if settings.tls else 'http'}://{address(listener)}"
    finally:
        server.stop()  # type: ignore[no-untyped-call]  # Granian ships no annotation for it
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(task, timeout=STOP_S)


async def _begun(begun: asyncio.Event, server: asyncio.Task[Any], where: str) -> None:
    """Raises BadSetting when *server* ended instead."""
    waiting = asyncio.create_task(begun.wait())
    try:
        done, _ = await asyncio.wait({waiting, server}, timeout=START_S, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
    if server in done:
        await server
    if waiting not in done:
        raise BadSetting(f"the server does not listen on {where}.")
