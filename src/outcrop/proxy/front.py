"""The container's HTTP face: ``/ping``, ``/invocations``, ``/metrics``. It runs no customer code, so none can take it
down; an answer is made elsewhere and handed through.
"""

from __future__ import annotations

import asyncio
import hmac
import time
from typing import Any

import msgspec
import structlog

from outcrop.proxy import link
from outcrop.proxy.http1_server import Exchange, Headers
from outcrop.proxy.metrics import Metrics
from outcrop.proxy.pool import Busy, Pending, Pool, WorkerLost, WorkerProcess, WorkerTaken
from outcrop.proxy.settings import ProxySettings

log = structlog.get_logger(__name__)

_GRACE_S = 0.5  # a worker tells by itself that time is over; one that does not by then is blocked
_HOP = frozenset({"connection", "content-length", "transfer-encoding", "keep-alive", "host", "authorization"})
_EVENTS = "text/event-stream"
_NO_KEY = (401, "This proxy wants its key: Authorization: Bearer <OUTCROP_PROXY_KEY>.")
_RETRY = (("retry-after", "1"), ("x-amz-retry-after", "1000"))


class Front:
    """Answers requests; owned by one event loop."""

    def __init__(self, settings: ProxySettings, pool: Pool, metrics: Metrics) -> None:
        self.settings = settings
        self.pool = pool
        self.metrics = metrics
        self._key = settings.bearer_key().encode()
        self.is_draining = False
        self.running = 0

    def refused(self, exchange: Exchange) -> tuple[int, str] | None:
        """Why a request is turned away by its head alone."""
        wants_key = exchange.path in ("/invocations", "/metrics")
        return None if not wants_key or self._may(exchange) else _NO_KEY

    def heard(self, exchange: Exchange) -> None:
        path, method = exchange.path, exchange.method
        if exchange.refusal is not None:
            exchange.refuse(*exchange.refusal)
            if exchange.refusal != _NO_KEY:
                self.metrics.ended(exchange.refusal[0], "proxy", time.perf_counter() - exchange.started, 0.0)
        elif path == "/invocations" and method == "POST":
            Invocation(self, exchange).begin()
        elif path == "/ping" and method in ("GET", "HEAD"):
            self._ping(exchange)
        elif path == "/metrics" and method == "GET":
            self._show_metrics(exchange)
        else:
            known = "POST /invocations, GET /ping, GET /metrics"
            exchange.refuse(404, f"There is nothing at {method} {path[:200]}; only {known}.")

    def _ping(self, exchange: Exchange) -> None:
        """200 once the script is loaded. Never asks the target: a health check must not wake a model."""
        if self.pool.is_ready and not self.is_draining:
            exchange.answer(200, (), b"")
        else:
            reason = "The proxy is draining." if self.is_draining else self.pool.failure or "The script is loading."
            exchange.refuse(503, reason, _RETRY)

    def _show_metrics(self, exchange: Exchange) -> None:
        workers, metrics = self.pool.workers, self.metrics
        metrics.workers.set(sum(worker.is_open for worker in workers))
        metrics.in_flight.set(self.running)
        metrics.waiting.set(self.pool.waiting)
        metrics.memory.set(sum(worker.memory_bytes() for worker in workers))
        exchange.answer(200, [("content-type", "text/plain; version=0.0.4; charset=utf-8")], metrics.text())

    def _may(self, exchange: Exchange) -> bool:
        if not self._key:
            return True
        given = exchange.headers.get("authorization", "").removeprefix("Bearer ").encode()
        return hmac.compare_digest(given, self._key)


class Invocation:
    """One invocation from its body to the end of its answer. Every step is a callback of the event loop."""

    __slots__ = (
        "_deadline",
        "_error",
        "_exchange",
        "_front",
        "_has_been_taken",
        "_head",
        "_is_over",
        "_loop",
        "_owed",
        "_pending",
        "_source",
        "_status",
        "_stream_left_s",
        "_target_s",
        "_timer",
        "_worker",
    )

    def __init__(self, front: Front, exchange: Exchange) -> None:
        self._front = front
        self._exchange = exchange
        self._loop = asyncio.get_running_loop()
        self._deadline = self._loop.time() + front.settings.timeout_s
        self._timer: asyncio.TimerHandle | None = None
        self._pending: Pending | None = None
        self._head: link.Head | None = None
        self._has_been_taken = False
        self._stream_left_s = 0.0
        self._owed = 0  # bytes of a stream that were written and not read yet
        self._is_over = False
        # What is recorded of it.
        self._status = 0
        self._source = self._error = ""
        self._target_s = 0.0
        self._worker = 0

    def begin(self) -> None:
        self._front.running += 1
        self._exchange.on_gone = self._gone
        self._ask()

    def _ask(self) -> None:
        pool = self._front.pool
        try:
            worker = pool.ask(self._run)
        except Busy:
            queue = self._front.settings.queue
            self._refuse(503, f"{queue} invocations wait already (OUTCROP_PROXY_QUEUE). Try again later.", _RETRY)
            return
        if worker is not None:
            self._run(worker)
        else:
            self._timer = self._loop.call_at(self._deadline, self._no_worker)

    def _no_worker(self) -> None:
        pool = self._front.pool
        pool.leave(self._run)
        reason = pool.failure or "All workers are busy or starting"
        self._refuse(503, f"No worker was free in time: {reason}.", _RETRY)

    def _run(self, worker: WorkerProcess) -> None:
        if self._timer is not None:
            self._timer.cancel()
        exchange, settings = self._exchange, self._front.settings
        headers = [(name, value) for name, value in exchange.headers.items() if name not in _HOP]
        left_s = max(0.001, self._deadline - self._loop.time())
        self._stream_left_s = max(left_s, settings.stream_timeout_s - (settings.timeout_s - left_s))
        asked = link.Invoke(0, exchange.request_id, headers, exchange.body, left_s, self._stream_left_s)
        self._worker = worker.pid
        self._pending = worker.begin(asked, self._hear)
        self._timer = self._loop.call_later(left_s + _GRACE_S, self._blocked)

    def _hear(self, message: link.Message | Exception) -> None:
        """The next of what the worker says of it, or what became of the worker."""
        if self._is_over:
            return
        match message:
            case link.Whole():
                self._status, self._target_s = message.status, message.target_s
                self._error = message.error
                if message.error or message.status >= 400:
                    named = (value for name, value in message.headers if name == "x-outcrop-error-source")
                    self._source = next(named, "")
                self._exchange.answer(message.status, message.headers, message.body)
                self._end()
            case link.Head():
                self._begin_stream(message)
            case link.Part():
                size = len(message.body)
                self._owed += size
                if self._exchange.part(message.body):
                    self._has_room()
            case link.End():
                self._target_s = message.target_s
                self._end_stream(message.error)
            case WorkerTaken() if self._head is None and not self._has_been_taken:
                # What another invocation's end takes the worker from is run once more: nothing of it was sent.
                self._has_been_taken = True
                self._let_go()
                self._ask()
            case WorkerTaken() if self._head is None:
                self._refuse(500, "Two workers were lost to other invocations.")
            case WorkerLost() if self._head is None:
                self._refuse(500, str(message))
            case Exception():
                self._end_stream(str(message) or "The worker was taken away.")

    def _begin_stream(self, head: link.Head) -> None:
        self._head = head
        self._status = head.status
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(self._stream_left_s + _GRACE_S, self._blocked)
        self._exchange.on_room = self._has_room
        self._exchange.begin(head.status, head.headers)

    def _has_room(self) -> None:
        """What was written was taken: the worker may send as much again."""
        owed, self._owed = self._owed, 0
        if owed and self._pending is not None:
            self._pending.taken(owed)

    def _end_stream(self, error: str) -> None:
        exchange = self._exchange
        if not error:
            exchange.end()
            self._end()
            return
        self._source, self._error = "handler", error
        head = self._head
        if head is not None and any(v.startswith(_EVENTS) for n, v in head.headers if n == "content-type"):
            exchange.part(b"event: error\ndata: " + msgspec.json.encode({"error": {"message": error}}) + b"\n\n")
        exchange.break_off()
        self._end()

    def _blocked(self) -> None:
        """The worker did not tell that time is over: its event loop is blocked."""
        pending, settings = self._pending, self._front.settings
        assert pending is not None
        self._front.pool.blocked(pending.worker, pending)
        if self._head is not None:
            self._end_stream("The script blocked its worker's event loop until the stream's time was over.")
            return
        message = f"The script blocked its worker's event loop for {settings.timeout_s:g} s."
        self._refuse(500, f"{message} Do not block in an async handler.")

    def _gone(self) -> None:
        if self._is_over:
            return
        self._source = self._source or "caller"
        if self._pending is None:
            self._front.pool.leave(self._run)
        elif not self._pending.worker.ended.is_set():
            self._pending.cancel()
        self._end()

    def _refuse(self, status: int, message: str, headers: Headers = ()) -> None:
        self._status, self._source, self._error = status, "proxy", message
        self._exchange.refuse(status, message, headers)
        self._end()

    def _let_go(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.worker.done(pending)

    def _end(self) -> None:
        self._is_over = True
        self._exchange.on_gone = self._exchange.on_room = None
        self._let_go()
        front = self._front
        front.running -= 1
        took = time.perf_counter() - self._exchange.started
        front.metrics.ended(self._status, self._source, took, self._target_s)
        more: dict[str, Any] = {"source": self._source, "error": self._error} if self._source else {}
        (log.info if self._status < 500 else log.warning)(
            "invocation",
            request_id=self._exchange.request_id,
            status=self._status,
            ms=round(took * 1000, 2),
            target_ms=round(self._target_s * 1000, 2),
            worker=self._worker,
            **more,
        )
