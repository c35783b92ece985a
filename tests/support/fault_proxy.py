"""An HTTP proxy that passes requests on unchanged, Host included so that signatures hold, and breaks those it is told to.

Faults are what networks and stores do: answers of 500, resets, bodies cut short or damaged, bytes that never come,
refusals for expired credentials, and plain latency. ``seen`` keeps every request with its Range.
"""

from __future__ import annotations

import asyncio
import re
import threading
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp import web
from yarl import URL

EXPIRED = (
    '<?xml version="1.0" encoding="UTF-8"?><Error><Code>ExpiredToken</Code>'
    "<Message>The provided token has expired.</Message></Error>"
)
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "proxy-authorization"}


@dataclass(slots=True)
class Fault:
    """*kind*: ``error`` (500), ``reset``, ``truncate``, ``corrupt``, ``stall`` or ``expired``; on paths that match."""

    kind: str
    path: re.Pattern[str]
    times: int
    skip: int = 0
    method: str = "GET"


@dataclass(slots=True)
class Seen:
    method: str
    path: str
    range: str | None
    fault: str | None


@dataclass(slots=True)
class FaultProxy:
    """A proxy to *upstream* in a thread of its own; ``url`` is where it listens."""

    upstream: str
    latency_s: float = 0.0
    faults: list[Fault] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    url: str = ""
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)
    _thread: threading.Thread | None = None
    _gate: asyncio.Event | None = None

    def start(self) -> FaultProxy:
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready,), daemon=True)
        self._thread.start()
        assert ready.wait(10)
        return self

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        assert self._thread is not None
        self._thread.join(10)

    def fail(
        self, kind: str, path: str = r"\.safetensors", *, times: int = 1, skip: int = 0, method: str = "GET"
    ) -> None:
        """Break the next *times* requests whose path matches, after *skip* that pass."""
        self.faults.append(Fault(kind, re.compile(path), times, skip, method))

    def heal(self) -> None:
        self.faults.clear()

    def asked(self, path: str) -> list[Seen]:
        """GETs of paths that match."""
        return [entry for entry in list(self.seen) if entry.method == "GET" and re.search(path, entry.path)]

    def _run(self, ready: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        ready.set()
        self._loop.run_forever()

    async def _serve(self) -> None:
        runner = web.ServerRunner(web.Server(self._answer))
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"

    def _fault_of(self, request: web.BaseRequest) -> str | None:
        for fault in self.faults:
            if fault.method == request.method and fault.path.search(request.raw_path) and fault.times > 0:
                if fault.skip:
                    fault.skip -= 1
                    return None
                fault.times -= 1
                return fault.kind
        return None

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        kind = self._fault_of(request)
        self.seen.append(Seen(request.method, request.raw_path, request.headers.get("Range"), kind))
        if self.latency_s:
            await asyncio.sleep(self.latency_s)
        if kind == "error":
            return web.Response(status=500, text="<Error><Code>InternalError</Code></Error>")
        if kind == "expired":
            return web.Response(status=400, text=EXPIRED, content_type="application/xml")
        if kind == "reset":
            _abort(request)
            return web.Response()
        status, headers, body = await self._forward(request)
        if kind == "corrupt":
            body = bytes([body[0] ^ 1]) + body[1:]
        response = web.StreamResponse(status=status, headers=headers)
        if request.method != "HEAD":
            response.content_length = len(body)
        await response.prepare(request)
        if kind in ("truncate", "stall"):
            await response.write(body[: len(body) // 2])
            if kind == "stall":
                await asyncio.sleep(30)
            _abort(request)
            return response
        if request.method != "HEAD":
            await response.write(body)
        return response

    async def _forward(self, request: web.BaseRequest) -> tuple[int, dict[str, str], bytes]:
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP_BY_HOP}
        async with (
            aiohttp.ClientSession(auto_decompress=False) as session,
            session.request(
                request.method,
                URL(self.upstream + request.raw_path, encoded=True),
                headers=headers,
                data=await request.read() or None,
                skip_auto_headers=("Content-Type", "User-Agent", "Accept", "Accept-Encoding"),
            ) as response,
        ):
            kept = {name: value for name, value in response.headers.items() if name.lower() not in _HOP_BY_HOP}
            return response.status, kept, await response.read()


def _abort(request: web.BaseRequest) -> None:
    transport: Any = request.transport
    if transport is not None:
        transport.abort()
