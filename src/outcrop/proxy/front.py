"""The container's HTTP face: ``/ping``, ``/invocations``, ``/metrics``. It runs no customer code, so none can take it
down; an answer is made elsewhere and handed through.
"""

from __future__ import annotations

import asyncio
import hmac
import time
from dataclasses import dataclass
from typing import Any

import msgspec
import structlog

from outcrop.api.http import ClientGone, Request, while_connected
from outcrop.api.listener.exchange import Receive, Scope, Send
from outcrop.errors import BodyTooLarge, MalformedBody
from outcrop.proxy import link
from outcrop.proxy.metrics import Metrics
from outcrop.proxy.pool import Busy, Pending, Pool, WorkerLost, WorkerTaken
from outcrop.proxy.settings import ProxySettings
from outcrop.proxy.values import JSON

log = structlog.get_logger(__name__)

_GRACE_S = 0.5  # a worker tells by itself that time is over; one that does not by then is blocked
_HOP = frozenset({"connection", "content-length", "transfer-encoding", "keep-alive", "host", "authorization"})
_EVENTS = "text/event-stream"


class StreamBroken(Exception):
    """Ends the connection midway, so that no client takes a broken stream for a whole one."""


@dataclass(slots=True)
class _Outcome:
    """What is recorded of one invocation."""

    status: int = 0
    source: str = ""
    target_s: float = 0.0
    error: str = ""
    worker: int = 0


class Front:
    """The ASGI application."""

    def __init__(self, settings: ProxySettings, pool: Pool, metrics: Metrics) -> None:
        self._settings = settings
        self._pool = pool
        self._metrics = metrics
        self._key = settings.bearer_key().encode()
        self.is_draining = False
        self.running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        path = request.raw_path
        try:
            if path == b"/invocations" and request.method == "POST":
                await self._invocation(request, send)
            elif path == b"/ping" and request.method in ("GET", "HEAD"):
                await self._ping(request.sender(send))
            elif path == b"/metrics" and request.method == "GET":
                await self._show_metrics(request, send)
            else:
                known = "POST /invocations, GET /ping, GET /metrics"
                await _refuse(send, 404, f"There is nothing at {request.method} {path[:200].decode()}; only {known}.")
        except ClientGone:
            return

    async def _ping(self, send: Send) -> None:
        """200 once the script is loaded. Never asks the target: a health check must not wake a model."""
        if self._pool.is_ready and not self.is_draining:
            await _answer(send, 200, [], b"")
        else:
            reason = "The proxy is draining." if self.is_draining else self._pool.failure or "The script is loading."
            await _refuse(send, 503, reason)

    async def _show_metrics(self, request: Request, send: Send) -> None:
        if not self._may(request):
            await _refuse(send, 401, _NO_KEY)
            return
        workers, metrics = self._pool.workers, self._metrics
        metrics.workers.set(sum(worker.is_open for worker in workers))
        metrics.in_flight.set(self.running)
        metrics.waiting.set(self._pool.waiting)
        metrics.memory.set(sum(worker.memory_bytes() for worker in workers))
        await _answer(send, 200, [("content-type", "text/plain; version=0.0.4; charset=utf-8")], metrics.text())

    def _may(self, request: Request) -> bool:
        if not self._key:
            return True
        given = request.header_map().get("authorization", "").removeprefix("Bearer ").encode()
        return hmac.compare_digest(given, self._key)

    async def _invocation(self, request: Request, send: Send) -> None:
        if not self._may(request):
            await request.discard()
            await _refuse(send, 401, _NO_KEY)
            return
        outcome = _Outcome()
        self.running += 1
        try:
            try:
                body = await request.body(self._settings.max_payload_bytes)
            except BodyTooLarge as exc:
                outcome.status, outcome.source = 413, "proxy"
                await _refuse(send, 413, exc.message)
                return
            except MalformedBody as exc:
                outcome.status, outcome.source = 400, "proxy"
                await _refuse(send, 400, exc.message)
                return
            await while_connected(request, self._run(request, body, send, outcome))
        except ClientGone:
            outcome.source = outcome.source or "caller"
            raise
        finally:
            self.running -= 1
            self._record(request, outcome)

    def _record(self, request: Request, outcome: _Outcome) -> None:
        took = time.perf_counter() - request.started
        self._metrics.ended(outcome.status, outcome.source, took, outcome.target_s)
        write = log.info if outcome.status < 500 else log.warning
        write(
            "invocation",
            request_id=request.request_id,
            status=outcome.status,
            ms=round(took * 1000, 2),
            target_ms=round(outcome.target_s * 1000, 2),
            worker=outcome.worker,
            **({"source": outcome.source, "error": outcome.error} if outcome.source else {}),
        )

    async def _run(self, request: Request, body: bytes, send: Send, outcome: _Outcome) -> None:
        """Have a worker run it; what another invocation's end takes the worker from is run once more."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._settings.timeout_s
        for is_last in (False, True):
            try:
                await self._attempt(request, body, send, outcome, deadline)
                return
            except WorkerTaken:
                if is_last:
                    await self._refused(send, outcome, 500, "Two workers were lost to other invocations.")
            except WorkerLost as exc:
                await self._refused(send, outcome, 500, str(exc))
                return
            except Busy:
                message = f"{self._settings.queue} invocations wait already (OUTCROP_PROXY_QUEUE). Try again later."
                await self._refused(send, outcome, 503, message)
                return

    async def _attempt(self, request: Request, body: bytes, send: Send, outcome: _Outcome, deadline: float) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout_at(deadline):
                worker = await self._pool.acquire()
        except TimeoutError:
            reason = self._pool.failure or "All workers are busy or starting"
            await self._refused(send, outcome, 503, f"No worker was free in time: {reason}.")
            return
        headers = [(name, value) for name, value in request.header_map().items() if name not in _HOP]
        left_s = max(0.001, deadline - loop.time())
        stream_left_s = self._settings.stream_timeout_s - (self._settings.timeout_s - left_s)
        pending = worker.begin(
            lambda number: link.Invoke(number, request.request_id, headers, body, left_s, max(left_s, stream_left_s))
        )
        outcome.worker = worker.pid
        is_done = False
        try:
            try:
                async with asyncio.timeout(left_s + _GRACE_S):
                    first = await pending.first
            except TimeoutError:
                is_done = True
                self._pool.blocked(worker, pending)
                message = f"The script blocked its worker's event loop for {self._settings.timeout_s:g} s."
                await self._refused(send, outcome, 500, f"{message} Do not block in an async handler.")
                return
            outcome.status = first.status
            if isinstance(first, link.Whole):
                is_done = True
                outcome.target_s = first.target_s
                self._note(outcome, first.headers, first.error)
                await _answer(send, first.status, first.headers, first.body)
            else:
                await self._hand_through(first, pending, send, outcome, stream_left_s)
                is_done = True
        finally:
            if not is_done and not worker.ended.is_set():
                pending.cancel()
            worker.done(pending)

    async def _hand_through(
        self, head: link.Head, pending: Pending, send: Send, outcome: _Outcome, left_s: float
    ) -> None:
        await send({"type": "http.response.start", "status": head.status, "headers": _encoded(head.headers)})
        until = asyncio.get_running_loop().time() + left_s + _GRACE_S
        error = ""
        while True:
            try:
                async with asyncio.timeout_at(until):
                    message = await pending.rest.get()
            except TimeoutError:
                self._pool.blocked(pending.worker, pending)
                error = "The script blocked its worker's event loop until the stream's time was over."
                break
            if isinstance(message, link.Part):
                await send({"type": "http.response.body", "body": message.body, "more_body": True})
                pending.taken(len(message.body))
                continue
            if isinstance(message, link.End):
                error, outcome.target_s = message.error, message.target_s
            else:
                error = str(message) or "The worker was taken away."
            break
        if not error:
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            return
        outcome.source, outcome.error = "handler", error
        if any(value.startswith(_EVENTS) for name, value in head.headers if name == "content-type"):
            last = b"event: error\ndata: " + msgspec.json.encode({"error": {"message": error}}) + b"\n\n"
            await send({"type": "http.response.body", "body": last, "more_body": True})
        raise StreamBroken(error)

    def _note(self, outcome: _Outcome, headers: Any, error: str) -> None:
        outcome.source = next((value for name, value in headers if name == "x-outcrop-error-source"), "")
        outcome.error = error

    async def _refused(self, send: Send, outcome: _Outcome, status: int, message: str) -> None:
        outcome.status, outcome.source, outcome.error = status, "proxy", message
        await _refuse(send, status, message)


_NO_KEY = "This proxy wants its key: Authorization: Bearer <OUTCROP_PROXY_KEY>."


async def _refuse(send: Send, status: int, message: str) -> None:
    headers = [("content-type", JSON)]
    if status == 503:
        headers += [("retry-after", "1"), ("x-amz-retry-after", "1000")]
    await _answer(send, status, headers, msgspec.json.encode({"message": message}))


async def _answer(send: Send, status: int, headers: Any, body: bytes) -> None:
    encoded = _encoded(headers)
    encoded.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})


def _encoded(headers: Any) -> list[tuple[bytes, bytes]]:
    return [
        (name.lower().encode("latin-1", "replace"), _one_line(value))
        for name, value in headers
        if name.lower() not in _HOP
    ]


def _one_line(value: str) -> bytes:
    return value.replace("\r", " ").replace("\n", " ").encode("latin-1", "replace")
